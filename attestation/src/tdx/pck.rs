//! The PCK certificate's SGX extension: which platform a key belongs to.
//!
//! Source: Intel SGX PCK Certificate and CRL Profile Specification, section
//! 1.3.5 (OID 1.2.840.113741.1.13.1). The order of the members is not relied on.

use crate::error::{Reason, VerifyError};
use crate::x509::der::element;

/// The extension's OID.
pub const SGX_EXTENSION: &str = "1.2.840.113741.1.13.1";

/// What the SGX extension says of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SgxExtension {
    /// The platform's provisioning id.
    pub ppid: [u8; 16],
    /// The SVNs that the key stands for.
    pub tcb: PckTcb,
    /// The CPUSVN as one value. Levels are compared by [`PckTcb::components`].
    pub cpusvn: [u8; 16],
    /// The provisioning enclave's id.
    pub pceid: [u8; 2],
    /// Family, model, stepping, platform type and custom SKU.
    pub fmspc: [u8; 6],
    /// How the platform protects enclave memory.
    pub sgx_type: SgxType,
    /// The platform's instance id; multi-socket platforms have one.
    pub platform_instance_id: Option<[u8; 16]>,
    /// What of the platform may change; multi-socket platforms say so.
    pub configuration: Configuration,
}

/// The SVNs in a PCK certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PckTcb {
    /// The 16 SGX component SVNs.
    pub components: [u8; 16],
    /// The PCE's SVN.
    pub pcesvn: u16,
}

/// How a platform protects enclave memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SgxType {
    /// With integrity and replay protection in the processor.
    Standard,
    /// By memory encryption alone.
    Scalable,
    /// By memory encryption with integrity.
    ScalableWithIntegrity,
}

/// What of a platform may change; none where the certificate does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Packages may be added.
    pub dynamic_platform: Option<bool>,
    /// Platform root keys are cached at Intel.
    pub cached_keys: Option<bool>,
    /// Hyper-threading is on.
    pub smt_enabled: Option<bool>,
}

impl SgxExtension {
    /// Reads the content of the extension.
    pub fn parse(der: &[u8]) -> Result<Self, VerifyError> {
        let members = Members::parse(der)?;
        let tcb = Members::parse_content(members.value("TCB", &[2], SEQUENCE)?)?;
        let configuration = match members.optional("configuration", &[7], SEQUENCE)? {
            Some(content) => Configuration::read(&Members::parse_content(content)?)?,
            None => Configuration::default(),
        };
        Ok(Self {
            ppid: members.octets("PPID", &[1])?,
            tcb: PckTcb::read(&tcb)?,
            cpusvn: tcb.octets("CPUSVN", &[2, 18])?,
            pceid: members.octets("PCEID", &[3])?,
            fmspc: members.octets("FMSPC", &[4])?,
            sgx_type: SgxType::read(members.value("SGX type", &[5], ENUMERATED)?)?,
            platform_instance_id: members
                .optional("platform instance id", &[6], OCTET_STRING)?
                .map(|id| id.try_into().map_err(|_| refuse("platform instance id")))
                .transpose()?,
            configuration,
        })
    }
}

impl PckTcb {
    fn read(members: &Members<'_>) -> Result<Self, VerifyError> {
        let mut components = [0; 16];
        for (svn, index) in components.iter_mut().zip(1..) {
            let value = members.number("TCB component SVN", &[2, index])?;
            *svn = u8::try_from(value).map_err(|_| refuse("TCB component SVN"))?;
        }
        Ok(Self { components, pcesvn: members.number("PCESVN", &[2, 17])? })
    }
}

impl SgxType {
    fn read(content: &[u8]) -> Result<Self, VerifyError> {
        match content {
            [0] => Ok(Self::Standard),
            [1] => Ok(Self::Scalable),
            [2] => Ok(Self::ScalableWithIntegrity),
            _ => Err(refuse("SGX type")),
        }
    }
}

impl Configuration {
    fn read(members: &Members<'_>) -> Result<Self, VerifyError> {
        let flag = |suffix: &[u8]| match members.optional("configuration", suffix, BOOLEAN)? {
            None => Ok(None),
            Some([0]) => Ok(Some(false)),
            Some([0xff]) => Ok(Some(true)),
            Some(_) => Err(refuse("configuration")),
        };
        Ok(Self {
            dynamic_platform: flag(&[7, 1])?,
            cached_keys: flag(&[7, 2])?,
            smt_enabled: flag(&[7, 3])?,
        })
    }
}

/// A SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, ANY }, each identifier once and
/// each under the extension's own.
struct Members<'a>(Vec<Member<'a>>);

struct Member<'a> {
    /// What follows the extension's identifier.
    suffix: &'a [u8],
    tag: u8,
    content: &'a [u8],
}

impl<'a> Members<'a> {
    fn parse(der: &'a [u8]) -> Result<Self, VerifyError> {
        match element(der) {
            Some((SEQUENCE, content, [])) => Self::parse_content(content),
            _ => Err(refuse("the extension")),
        }
    }

    fn parse_content(mut rest: &'a [u8]) -> Result<Self, VerifyError> {
        let mut members: Vec<Member<'a>> = Vec::new();
        while !rest.is_empty() {
            let (member, after) = Member::parse(rest).ok_or_else(|| refuse("a member"))?;
            if members.iter().any(|other| other.suffix == member.suffix) {
                return Err(refuse("a member, which is there twice"));
            }
            members.push(member);
            rest = after;
        }
        Ok(Self(members))
    }

    fn optional(
        &self,
        field: &'static str,
        suffix: &[u8],
        tag: u8,
    ) -> Result<Option<&'a [u8]>, VerifyError> {
        match self.0.iter().find(|member| member.suffix == suffix) {
            None => Ok(None),
            Some(member) if member.tag == tag => Ok(Some(member.content)),
            Some(_) => Err(refuse(field)),
        }
    }

    fn value(&self, field: &'static str, suffix: &[u8], tag: u8) -> Result<&'a [u8], VerifyError> {
        self.optional(field, suffix, tag)?.ok_or_else(|| refuse(field))
    }

    fn octets<const N: usize>(
        &self,
        field: &'static str,
        suffix: &[u8],
    ) -> Result<[u8; N], VerifyError> {
        self.value(field, suffix, OCTET_STRING)?.try_into().map_err(|_| refuse(field))
    }

    /// An INTEGER from 0 to 65535 in the shortest form.
    fn number(&self, field: &'static str, suffix: &[u8]) -> Result<u16, VerifyError> {
        match *self.value(field, suffix, INTEGER)? {
            [low @ 0..=0x7f] => Ok(u16::from(low)),
            [0, low @ 0x80..=0xff] => Ok(u16::from(low)),
            [high @ 1..=0x7f, low] => Ok(u16::from_be_bytes([high, low])),
            [0, high @ 0x80..=0xff, low] => Ok(u16::from_be_bytes([high, low])),
            _ => Err(refuse(field)),
        }
    }
}

impl<'a> Member<'a> {
    fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (SEQUENCE, content, after) = element(bytes)? else { return None };
        let (OBJECT_IDENTIFIER, oid, value) = element(content)? else { return None };
        let suffix = oid.strip_prefix(SGX_EXTENSION_DER)?;
        let (tag, content, []) = element(value)? else { return None };
        Some((Self { suffix, tag, content }, after))
    }
}

fn refuse(field: &'static str) -> VerifyError {
    let expected = "as the PCK certificate profile has it";
    VerifyError::new(Reason::PckCertificate, field, expected, "something else")
}

/// The content of the OBJECT IDENTIFIER [`SGX_EXTENSION`].
const SGX_EXTENSION_DER: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        match length {
            [0, short @ 0..=0x7f] => [&[tag, short][..], content].concat(),
            [0, long] => [&[tag, 0x81, long][..], content].concat(),
            [high, low] => [&[tag, 0x82, high, low][..], content].concat(),
        }
    }

    fn member(suffix: &[u8], value: &[u8]) -> Vec<u8> {
        let oid = tlv(OBJECT_IDENTIFIER, &[SGX_EXTENSION_DER, suffix].concat());
        tlv(SEQUENCE, &[&oid[..], value].concat())
    }

    fn members(pcesvn: &[u8]) -> Vec<Vec<u8>> {
        let mut tcb = Vec::new();
        for index in 1..=16 {
            tcb.extend(member(&[2, index], &tlv(INTEGER, &[0, 0xff])));
        }
        tcb.extend(member(&[2, 17], &tlv(INTEGER, pcesvn)));
        tcb.extend(member(&[2, 18], &tlv(OCTET_STRING, &[1; 16])));
        vec![
            member(&[1], &tlv(OCTET_STRING, &[2; 16])),
            member(&[2], &tlv(SEQUENCE, &tcb)),
            member(&[3], &tlv(OCTET_STRING, &[0; 2])),
            member(&[4], &tlv(OCTET_STRING, &[3; 6])),
            member(&[5], &tlv(ENUMERATED, &[1])),
        ]
    }

    #[test]
    fn members_are_read_in_any_order() {
        let mut members = members(&[13]);
        for _ in 0..members.len() {
            members.rotate_left(1);
            let extension = SgxExtension::parse(&tlv(SEQUENCE, &members.concat())).unwrap();
            assert_eq!(extension.tcb, PckTcb { components: [255; 16], pcesvn: 13 });
            assert_eq!(extension.sgx_type, SgxType::Scalable);
            assert_eq!(extension.configuration, Configuration::default());
        }
    }

    #[test]
    fn numbers_have_one_form() {
        for (der, value) in [(&[0x7f][..], 127), (&[0, 0x80], 128), (&[0, 0xff, 0xff], 65535)] {
            let extension = SgxExtension::parse(&tlv(SEQUENCE, &members(der).concat())).unwrap();
            assert_eq!(extension.tcb.pcesvn, value);
        }
        for wrong in [&[][..], &[0x80], &[0, 0x7f], &[1, 0, 0], &[0, 1, 0]] {
            assert!(SgxExtension::parse(&tlv(SEQUENCE, &members(wrong).concat())).is_err());
        }
    }

    #[test]
    fn missing_twice_and_trailing_are_refused() {
        let all = members(&[13]);
        for left_out in 0..all.len() {
            let mut some = all.clone();
            some.remove(left_out);
            assert!(SgxExtension::parse(&tlv(SEQUENCE, &some.concat())).is_err());
        }
        let twice = [all.concat(), all[0].clone()].concat();
        assert!(SgxExtension::parse(&tlv(SEQUENCE, &twice)).is_err());
        let trailing = [tlv(SEQUENCE, &all.concat()), vec![0]].concat();
        assert!(SgxExtension::parse(&trailing).is_err());
    }
}
