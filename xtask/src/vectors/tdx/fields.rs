//! Every field of a real quote, compared with what its `meta.json` says.

use anyhow::{Context, ensure};
use casemate_attestation::tdx::{BodyKind, Quote, SgxExtension, TdReport, claimed_platform};
use casemate_attestation::wire::hex;
use serde_json::Value;

pub(super) fn compare(quote: &Quote<'_>, meta: &Value) -> anyhow::Result<()> {
    let mut compared = Compared { meta, count: 0 };
    let body = match (quote.version, quote.body_kind) {
        (4, _) => Value::Null,
        (_, BodyKind::Td10) => 2.into(),
        (_, BodyKind::Td15) => 3.into(),
        (_, BodyKind::Td15Ex) => 4.into(),
    };
    compared.same("/quote/version", quote.version)?;
    compared.same("/quote/body_type", body)?;
    report(&quote.report, &mut compared)?;
    compared.same("/qe_report/isvsvn", quote.qe_report.isvsvn)?;
    compared.same("/qe_report/isvprodid", quote.qe_report.isvprodid)?;
    compared.bytes("/qe_report/mrsigner", &quote.qe_report.mrsigner)?;
    compared.same("/qe_report/auth_data_len", quote.qe_auth_data.len())?;
    ensure!(compared.count > 20, "meta.json: only {} fields to compare", compared.count);
    Ok(())
}

/// What the PCK certificate of `quote` says of its platform.
pub(super) fn compare_platform(quote: &[u8], meta: &Value) -> anyhow::Result<()> {
    let (extension, _) = claimed_platform(quote)?;
    let mut compared = Compared { meta, count: 0 };
    let SgxExtension { fmspc, pceid, tcb, platform_instance_id, .. } = &extension;
    compared.bytes("/pck/fmspc", fmspc)?;
    compared.bytes("/pck/pceid", pceid)?;
    compared.same("/pck/pcesvn", tcb.pcesvn)?;
    compared.same("/pck/sgx_tcb_comps", tcb.components.to_vec())?;
    if let Some(id) = platform_instance_id {
        compared.bytes("/pck/platform_instance_id", id)?;
    }
    ensure!(compared.count > 3, "meta.json: only {} fields to compare", compared.count);
    Ok(())
}

fn report(report: &TdReport, compared: &mut Compared<'_>) -> anyhow::Result<()> {
    let own: [(&str, &[u8]); 11] = [
        ("tee_tcb_svn", &report.tee_tcb_svn),
        ("mr_seam", &report.mrseam),
        ("mrsigner_seam", &report.mrsignerseam),
        ("seam_attributes", &report.seamattributes),
        ("td_attributes", &report.tdattributes.0.to_le_bytes()),
        ("xfam", &report.xfam.to_le_bytes()),
        ("mr_td", &report.mrtd),
        ("mr_config_id", &report.mrconfigid),
        ("mr_owner", &report.mrowner),
        ("mr_owner_config", &report.mrownerconfig),
        ("report_data", &report.report_data),
    ];
    compared.all(&own)?;
    for (index, rtmr) in report.rtmrs.iter().enumerate() {
        compared.bytes(&format!("/td_report/rtmr/{index}"), rtmr)?;
    }
    if let Some(td15) = &report.td15 {
        compared
            .all(&[("tee_tcb_svn_2", &td15.tee_tcb_svn_2), ("mr_service_td", &td15.mrservicetd)])?;
    }
    if let Some(ex) = &report.td15_ex {
        compared.all(&[
            ("vmid", &[ex.vmid]),
            ("td_id", &ex.td_id),
            ("dev_info", &ex.dev_info),
            ("init_service_td_hash", &ex.init_service_td_hash),
            ("init_service_td_attributes", &ex.init_service_td_attributes),
            ("init_cpu_svn", &ex.init_cpu_svn),
            ("init_tee_tcb_svn", &ex.init_tee_tcb_svn),
            ("init_tee_fmspc", &ex.init_tee_fmspc),
            ("cur_service_td_hash", &ex.cur_service_td_hash),
            ("cur_service_td_attributes", &ex.cur_service_td_attributes),
        ])?;
    }
    Ok(())
}

/// The expectation, and how many fields it was asked for.
struct Compared<'a> {
    meta: &'a Value,
    count: usize,
}

impl Compared<'_> {
    fn all(&mut self, fields: &[(&str, &[u8])]) -> anyhow::Result<()> {
        fields.iter().try_for_each(|(name, bytes)| self.bytes(&format!("/td_report/{name}"), bytes))
    }

    fn bytes(&mut self, path: &str, actual: &[u8]) -> anyhow::Result<()> {
        self.same(path, hex(actual))
    }

    fn same(&mut self, path: &str, actual: impl Into<Value>) -> anyhow::Result<()> {
        let actual = actual.into();
        let expected = match self.meta.pointer(path) {
            // A quote of version 4 has no body type, and its meta no such field.
            None if actual.is_null() => return Ok(()),
            expected => expected.with_context(|| format!("meta.json: no {path}"))?,
        };
        ensure!(*expected == actual, "{path}: expected {expected}, got {actual}");
        self.count += 1;
        Ok(())
    }
}
