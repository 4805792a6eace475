#!/usr/bin/env python3
"""Runs NVIDIA's nv-local-gpu-verifier offline over a directory of GPU evidence
and prints where its verdict is not the expected one, then its time beside ours
(docs/nvidia-differential.md).

usage: nvidia-differential.py VECTORS/nvgpu

Needs PyPI nv-local-gpu-verifier 2.7.3. Only the network and the hardware are
replaced: OCSP says good, evidence comes from files, the clock is the case's.
"""
import datetime, json, logging, os, re, subprocess, sys, time, types
from pathlib import Path


def judge(folder: Path, root: Path) -> dict:
    """One case, in a process of its own: the verifier keeps global state."""
    case = json.loads((folder / "case.json").read_text())
    files = case["files"]
    now = datetime.datetime.fromisoformat(case["verify_at"].replace("Z", "+00:00"))
    sys.modules.setdefault("pynvml", types.ModuleType("pynvml"))
    import pynvml
    if not hasattr(pynvml, "NVML_DEVICE_ARCH_HOPPER"):
        pynvml.__getattr__ = lambda name: {"NVML_DEVICE_ARCH_HOPPER": 9}.get(name, Exception)
    from OpenSSL import crypto

    plain = crypto.X509Store.__init__

    def at_time(self):
        plain(self)
        self.set_time(now.replace(tzinfo=None))

    crypto.X509Store.__init__ = at_time
    import signxml.util
    add = signxml.util._add_cert_to_store

    def add_at_time(store, certificate):
        store.set_time(now.replace(tzinfo=None))
        return add(store, certificate)

    signxml.util._add_cert_to_store = add_at_time
    logging.disable(logging.CRITICAL)
    from verifier import cc_admin
    last = []
    cc_admin.info_log.error = lambda message, *rest: last.append(str(message).strip())
    from verifier.cc_admin_utils import CcAdminUtils
    from verifier.config import BaseSettings, GPU_ARCHITECTURE_MAP
    from verifier.nvml import NvmlHandler

    NvmlHandler.is_cc_dev_mode = staticmethod(lambda: False)

    CcAdminUtils.ocsp_certificate_chain_validation = staticmethod(
        lambda chain, settings, mode: (True, "", "good", None))
    roots = {"nvidia": ("nvidia_device_identity_ca.pem", "nvidia_corim_signing_root_ca.pem"),
             "synthetic": ("synthetic_device_root.pem", "synthetic_rim_root.pem")}[case["roots"]]
    device_root, rim_root = (str(root / "roots" / name) for name in roots)
    for holder in [BaseSettings, *GPU_ARCHITECTURE_MAP.values()]:
        holder.ROOT_CERT_DIR, holder.RIM_ROOT_CERT = str(root / "roots"), rim_root
        holder.DEVICE_ROOT_CERT = device_root
    arch = 10 if case["expect"].get("chip", "GH100").startswith("GB") else 9
    settings = GPU_ARCHITECTURE_MAP[arch]
    BaseSettings.mark_attestation_report_as_available()
    settings.GPU_ARCH, settings.GPU_ARCH_NAME = arch, {9: "HOPPER", 10: "BLACKWELL"}[arch]
    type(settings).DRIVER_RIM_PATH = str(folder / files["driver_rim"])
    end = "-----END CERTIFICATE-----"
    texts = [one + end for one in (folder / files["chain"]).read_text().split(end)[:-1]]
    chain = [crypto.load_certificate(crypto.FILETYPE_PEM, one) for one in texts]
    # As its NVML wrapper does: the pinned root takes the presented one's place.
    chain[-1] = crypto.load_certificate(crypto.FILETYPE_PEM, Path(device_root).read_bytes())
    gpu = types.SimpleNamespace(
        get_gpu_architecture=lambda: arch, get_uuid=lambda: "GPU-0",
        get_driver_version=lambda: case["expect"].get("driver_version", ""),
        get_vbios_version=lambda: case["expect"].get("vbios_version", ""),
        get_attestation_report=lambda: (folder / files["report"]).read_bytes(),
        get_attestation_cert_chain=lambda: chain)
    arguments = dict(verbose=False, test_no_gpu=False, driver_rim="file", user_mode=True,
                     vbios_rim=str(folder / files["vbios_rim"]), allow_hold_cert=False,
                     nonce=case["nonce"], rim_root_cert=None, rim_service_url=None, ocsp_url=None,
                     service_key=None, ocsp_nonce_disabled=True, claims_version="3.0")
    start = time.process_time()
    try:
        accepted = cc_admin.attest(arguments, case["nonce"], [gpu])[0]
        why = "; ".join(last[-1:])
    except Exception as error:
        accepted, why = False, f"{type(error).__name__}: {str(error).strip()}"
    return {"accepted": bool(accepted), "why": why[:90],
            "ms": round((time.process_time() - start) * 1000, 1)}


def main() -> None:
    root = Path(sys.argv[1])
    if len(sys.argv) == 3:
        result = judge(Path(sys.argv[2]), root)
        print("RESULT " + json.dumps(result))
        return
    same, times = 0, []
    cases = sorted(root.rglob("case.json"))
    for file in cases:
        case = json.loads(file.read_text())
        if case["kind"] != "gpu" or not {"driver_rim", "vbios_rim"} <= set(case["files"]):
            continue
        run = subprocess.run([sys.executable, __file__, str(root), str(file.parent)],
                             capture_output=True, text=True, env=os.environ)
        lines = [one for one in run.stdout.splitlines() if one.startswith("RESULT ")]
        if not lines:
            print(f"ERROR {case['id']}: {run.stderr.strip().splitlines()[-1:]}")
            continue
        result = json.loads(lines[-1][7:])
        expected = case["expect"].get("appraisal") == "pass"
        times.append(result["ms"])
        if result["accepted"] == expected:
            same += 1
        else:
            verdict = "accepts" if result["accepted"] else "refuses"
            print(f"DIFFERS {case['id']}: {verdict}; expected {case['expect']['errors']}; {result['why']}")
    theirs = sorted(times)[len(times) // 2]
    print(f"{same} of {len(times)} agree; median {theirs} ms of processor time")
    ours(theirs)


def ours(theirs: float) -> None:
    """The same on our side, in the same run: one GPU with two manifests, and a whole machine."""
    bench = ["cargo", "bench", "--locked", "--quiet", "-p", "casemate-model", "--bench", "gpu"]
    said = subprocess.run(bench, capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        found = re.match(r"(.*?)\s+([0-9.]+) ms", line)
        devices = 12 if found and found[1].startswith("8 GPUs") else 1
        if found and "GPU" in found[1]:
            share = float(found[2]) / devices
            print(f"{line}; a device {share:.2f} ms, {theirs / share:.0f} times as fast")


main()
