#!/usr/bin/env python3
"""Compares our canonicaliser and signature check with libxml2's and OpenSSL's
over signed manifests and thousands of documents made from them
(docs/nvidia-differential.md).

usage: canonical-differential.py FOLDER_OF_MANIFESTS [COUNT [SEED]]

Needs PyPI lxml and cryptography, and
cargo build --release -p casemate-attestation --example manifest_digest
(its folder, if another than target/release/examples, in EXAMPLES).
"""
import base64, collections, hashlib, os, random, re, subprocess, sys, tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from lxml import etree

DS = "{http://www.w3.org/2000/09/xmldsig#}"
WORDS = ["a", "b", "c", "d", "e", "f", "g"]


def theirs(data: bytes) -> tuple[str, str]:
    """The digest of the canonical document without its signature, and whether
    the signature over SignedInfo holds, by libxml2 and OpenSSL."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    root = etree.fromstring(data, parser)
    signature = root.find(DS + "Signature")
    info = etree.tostring(signature.find(DS + "SignedInfo"), method="c14n", with_comments=False)
    leaf = base64.b64decode(signature.find(f".//{DS}X509Certificate").text)
    raw = base64.b64decode(signature.find(DS + "SignatureValue").text)
    stated = base64.b64decode(signature.find(f".//{DS}DigestValue").text).hex()
    # lxml takes the text behind an element away with it: the digest needs it.
    before, tail = signature.getprevious(), signature.tail or ""
    root.remove(signature)
    if before is None:
        root.text = (root.text or "") + tail
    else:
        before.tail = (before.tail or "") + tail
    digest = hashlib.sha384(etree.tostring(root, method="c14n", with_comments=False)).hexdigest()
    r, s = int.from_bytes(raw[:48], "big"), int.from_bytes(raw[48:], "big")
    try:
        key = x509.load_der_x509_certificate(leaf).public_key()
        key.verify(utils.encode_dss_signature(r, s), info, ec.ECDSA(hashes.SHA384()))
        signed = "signed"
    except InvalidSignature:
        signed = "not-signed"
    return ("as-signed" if digest == stated else digest), signed


def text(rng: random.Random) -> str:
    some = ["x", " ", "\n", "\t", "&amp;", "&lt;", "&gt;", ">", "&#13;", "&#xD;", "&#9;", "é", "€",
            "\U0001f600", "&#x1F600;", '"', "'", "&quot;", "&apos;", "<!-- c -->", "\r\n", "\r"]
    return "".join(rng.choice(some) for _ in range(rng.randrange(6)))


def value(rng: random.Random) -> str:
    raw = re.sub("<!-- c -->", "", text(rng))
    return "'" + raw.replace("'", "") + "'" if rng.random() < 0.4 else '"' + raw.replace('"', "") + '"'


def element(rng: random.Random, scope: dict, depth: int) -> str:
    """A random element of the subset: namespaces that shadow and repeat, attributes in any order."""
    scope = dict(scope)
    parts = []
    for prefix in rng.sample(WORDS, rng.randrange(4)):
        scope[prefix] = rng.choice(["urn:1", "urn:2", "http://x/?a=b;c", scope.get(prefix, "urn:3")])
        parts.append(f'xmlns:{prefix}="{scope[prefix]}"')
    if rng.random() < 0.3:
        parts.append(f'xmlns="{rng.choice(["urn:d", "urn:1", "urn:e"])}"')
    taken = set()
    for name in rng.sample(WORDS, rng.randrange(4)):
        prefix = rng.choice([""] + list(scope))
        key = (scope.get(prefix, ""), name)
        if key not in taken:
            taken.add(key)
            parts.append((f"{prefix}:{name}" if prefix else name) + "=" + value(rng))
    rng.shuffle(parts)
    space = lambda: rng.choice([" ", "\n", "  ", "\t"])
    name = rng.choice(WORDS)
    prefix = rng.choice(["", ""] + list(scope))
    name = f"{prefix}:{name}" if prefix else name
    start = "<" + name + "".join(space() + part for part in parts) + rng.choice(["", " "])
    if rng.random() < 0.3:
        return start + "/>"
    inside = text(rng)
    for _ in range(rng.randrange(4) if depth < 5 else 0):
        inside += element(rng, scope, depth + 1) + text(rng)
    return start + ">" + inside + f"</{name}{rng.choice(['', ' '])}>"


def changed(rng: random.Random, manifest: str) -> str:
    """The manifest with one to four changes that stay inside the subset."""
    for _ in range(rng.randrange(1, 5)):
        gaps = [m.start() for m in re.finditer(r"<(?![/!?])", manifest)][1:]
        at = rng.choice(gaps)
        inside = manifest.rfind("<ds:Signature ", 0, at) > manifest.rfind("</ds:Signature>", 0, at)
        kind = rng.randrange(6)
        if kind == 0:
            manifest = manifest[:at] + "<!-- a -->" + manifest[at:]
        elif kind == 1:
            manifest = manifest[:at] + rng.choice([" ", "\n", "\r\n", "\t"]) + manifest[at:]
        elif kind == 2 and not inside:
            manifest = manifest[:at] + element(rng, {}, 0) + manifest[at:]
        elif kind == 3:
            uri = rng.choice(["urn:n", "http://www.w3.org/2001/04/xmlenc#sha384"])
            manifest = re.sub(r"(<[\w:]+)", rf'\1 xmlns:n{rng.randrange(9)}="{uri}"', manifest[:at]
                              and manifest, count=1) if rng.random() < 0.3 else \
                manifest[:at] + re.sub(r"^(<[\w:]+)", rf'\1 xmlns:n{rng.randrange(9)}="{uri}"', manifest[at:])
        elif kind == 4:
            manifest = manifest.replace(' corpus="false"', "\n corpus = 'false'", 1)
        else:
            manifest = manifest.replace('name="GH100"', 'name="&#x47;H1&#48;0"', 1)
    return manifest


def main() -> None:
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    genuine = sorted(Path(sys.argv[1]).rglob("*.xml"))
    texts = [path.read_text() for path in genuine]
    example = Path(os.environ.get("EXAMPLES", "target/release/examples")) / "manifest_digest"
    tally, differ = collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, original in enumerate(texts):
            Path(folder, f"g{number:05}").write_text(original, newline="")
        for number in range(count):
            document = changed(rng, rng.choice(texts))
            Path(folder, f"m{number:05}").write_text(document, newline="")
        run = subprocess.run([example, folder], capture_output=True, text=True, check=True)
        for line in run.stdout.splitlines():
            name, digest, signed = line.split()
            kind = "genuine" if name.startswith("g") else "made"
            try:
                expected = theirs(Path(folder, name).read_bytes())
            except (etree.XMLSyntaxError, AttributeError, ValueError, TypeError) as error:
                expected = (type(error).__name__, "")
            if digest.startswith("RIM_"):
                # Refused before anything is hashed: outside the profile.
                tally[kind, "we refuse", digest, "libxml2 reads it" if expected[1] else "libxml2 refuses"] += 1
            elif (digest, signed) == expected:
                tally[kind, "same", "as signed" if digest == "as-signed" else "same other digest", signed] += 1
            else:
                differ += 1
                print(f"DIFFERS {name}: ours {digest[:16]} {signed}, theirs {expected[0][:16]} {expected[1]}")
                if os.environ.get("KEEP"):
                    Path(os.environ["KEEP"], name).write_bytes(Path(folder, name).read_bytes())
    for key, number in sorted(tally.items()):
        print(f"{number:6} {', '.join(key)}")
    print(f"{differ} differ")
    sys.exit(differ > 0)


main()
