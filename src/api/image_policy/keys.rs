//! Public keys in PEM, and what each can have signed.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

/// `rsaEncryption`, `id-ecPublicKey` and `Ed25519`; the curves P-256 and P-384.
const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const ED: &str = "1.3.101.112";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// The algorithms a key of each kind signs with. SHA-256 is the specification's; newer signers take
/// SHA-384 for P-384.
const WITH_P256: &[&dyn VerificationAlgorithm] = &[&ECDSA_P256_SHA256_ASN1];
const WITH_P384: &[&dyn VerificationAlgorithm] =
    &[&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1];
const WITH_ED25519: &[&dyn VerificationAlgorithm] = &[&ED25519];
const WITH_RSA: &[&dyn VerificationAlgorithm] =
    &[&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256];

/// A key that signatures are checked with.
#[derive(Clone)]
pub(super) struct PublicKey {
    algorithms: &'static [&'static dyn VerificationAlgorithm],
    /// As the algorithms want it: a point, or `RSAPublicKey`.
    bytes: Vec<u8>,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublicKey").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// All keys of a text in PEM; at least one.
    pub(super) fn read_all(text: &str) -> Result<Vec<Self>, String> {
        let mut keys = Vec::new();
        for found in SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes()) {
            let der = found.map_err(|_| "the PEM is damaged".to_owned())?;
            keys.push(Self::read(der.as_ref())?);
        }
        if keys.is_empty() {
            let what = if text.contains("PRIVATE KEY") { "a private key" } else { "no public key" };
            return Err(format!("it holds {what}; it must begin with -----BEGIN PUBLIC KEY-----"));
        }
        Ok(keys)
    }

    fn read(der: &[u8]) -> Result<Self, String> {
        let damaged = || "the key is damaged".to_owned();
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| damaged())?;
        if !rest.is_empty() {
            return Err(damaged());
        }
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let curve = curve.map(|oid| oid.to_id_string());
        let algorithms = match (info.algorithm.algorithm.to_id_string().as_str(), curve.as_deref())
        {
            (RSA, _) => WITH_RSA,
            (ED, _) => WITH_ED25519,
            (EC, Some(P256)) => WITH_P256,
            (EC, Some(P384)) => WITH_P384,
            (kind, curve) => {
                let kind = curve.unwrap_or(kind);
                return Err(format!(
                    "a key of the kind {kind} cannot be used: take ECDSA with P-256 or P-384, Ed25519 or RSA"
                ));
            }
        };
        Ok(Self { algorithms, bytes: info.subject_public_key.data.into_owned() })
    }

    /// Whether this key made `signature` over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.iter().any(|algorithm| {
            UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message, keys of several kinds, and a signature of each: made with OpenSSL.
    const MESSAGE: &[u8] = b"edgeorc\n";
    const SIGNED: &[(&str, &str, &str)] = &[
        (
            "P-256",
            "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8j1gtWBLnAFZCC2JAtMA49ZXIJWT
sTeXqYxI1LuNiKgXFhKP2Oy6jZFWsSy+lp5e4IGP6ME4JXhX8OngkcdNqA==
-----END PUBLIC KEY-----
",
            "MEUCIQDxeSPC2GjlonslXHozogbSL/fWj+27OrPbxDV9T8yPJgIgTcWsn/+W/8Y7vHRSikO6yzROnrsqW8al2Kw4CCH0Tgg=",
        ),
        (
            "P-384 with SHA-256",
            "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEXFNepSxA63cSYoMXaD+yWgAj0GVdo1dY
SIMIOVqk90q/fYdnesSZd6KBnAznPIb4GZAfdWZEy6ye1lZ2mNimdk6bCiN5mBhm
MDyWvOmateejgdU04ylWbh6ylaKvc2O1
-----END PUBLIC KEY-----
",
            "MGQCMHqVCXIbWhMWNNLIhNotiEci/wBSibnmmsqyVAwu8pwKSYz2OTqoj0CXogRg/XkRwwIweJ1V++wrwmRmbpNdIEVAJKqkZabwjmVrTycpQUYvdFJfNzOPjHFugpQKxFw3wOvz",
        ),
        (
            "P-384 with SHA-384",
            "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEXFNepSxA63cSYoMXaD+yWgAj0GVdo1dY
SIMIOVqk90q/fYdnesSZd6KBnAznPIb4GZAfdWZEy6ye1lZ2mNimdk6bCiN5mBhm
MDyWvOmateejgdU04ylWbh6ylaKvc2O1
-----END PUBLIC KEY-----
",
            "MGQCMHwFYZfhmPhOlsF5EOTeK937wFDjOe6GhR7VvqdlYGnuqxclUXZdhhgmgmaxXrPn3QIwR/45MPo6kGswk0Nn68kcDUTw8wrF0ZhpBVgVxOfKCGcTaEGyIonzMY4vP1/ZQT6a",
        ),
        (
            "Ed25519",
            "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAYIAIg7j2uUKsIw0Z+smStPRxLttLSU7lvG2GAop9wkA=
-----END PUBLIC KEY-----
",
            "EzsTtk6GWjMVWA45RzmKKgd/CyODKR2HIyxASJZ5kLchlB8bskUslRDQ5oA4VCaJSywhg6IpyDrAYww6MpkzCw==",
        ),
        (
            "RSA",
            "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA7Dtq3J0j+fMDlrp8H00C
ta71zY4+rn3cfUOLl01h35Vz8E8yJj3h0kebXt6JQ+lpI8I8ZExi5a/Lh6TaBPm7
N3P54Xcq1rlpc6LxsTF3TbAmUIb8Vt4fN8wtXN2VjGOlMebU7jjVABq3c0Y/VHoq
eRxRUnKDiR/NNx42fntFMMtt1OdzeSwSGoTTeZ+gc9YWxdrIoRWL3zr2RAq6/dDP
699EwTlYJhNtKUGU3YH1m9ESScx0gedWG0AAEC3lRwWAykjqIR/av4uYoPyU4hQs
k2Kr+VVSNE5bgBPoiQplsjRPaZVhZKOlF2Lmh4rtBV2bMIylYQdtNWirTOVTlxs7
ZQIDAQAB
-----END PUBLIC KEY-----
",
            "GMORbMz1qZI3MJtS1mAq3Gih2LNCMv+eqYKPe/LeiqqJaFsOq+3xWTR0VmanusTVOvtaBMknrXADC2NOoS9xGjp6gS5JD5o2Ykj1HHsl62/5H4EkjRJt4CQyetKm9Pako1oDSeNXXwLff2rfoHQgvpByy9L97L/uLZNqoFoyReZFfyqfpuFw09dtpbuI75H1erXYRWDOraPJO3keexEbSZbkvyOIK/tXm9hcZoYtqliJEvOBbMskGjRjGu4J+4lNfm5GlztF76nC1iQ4aBTJSMgbYpp2JKgHWOhIbh1FeVVonRMeMmDjoCWAooCWkUtLEHOFGccjoBICrGrPJDtFiQ==",
        ),
        (
            "RSA-PSS",
            "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA7Dtq3J0j+fMDlrp8H00C
ta71zY4+rn3cfUOLl01h35Vz8E8yJj3h0kebXt6JQ+lpI8I8ZExi5a/Lh6TaBPm7
N3P54Xcq1rlpc6LxsTF3TbAmUIb8Vt4fN8wtXN2VjGOlMebU7jjVABq3c0Y/VHoq
eRxRUnKDiR/NNx42fntFMMtt1OdzeSwSGoTTeZ+gc9YWxdrIoRWL3zr2RAq6/dDP
699EwTlYJhNtKUGU3YH1m9ESScx0gedWG0AAEC3lRwWAykjqIR/av4uYoPyU4hQs
k2Kr+VVSNE5bgBPoiQplsjRPaZVhZKOlF2Lmh4rtBV2bMIylYQdtNWirTOVTlxs7
ZQIDAQAB
-----END PUBLIC KEY-----
",
            "kLuct7SnID4WaYv7IGCmObTAVWD9OoYDy+tIDOtQkNgVyp9s+sj6Ez1vOKPp3dc/gBUpQZGHdeVe7wHfawZ4kAKSxKd5bPcKNYcLlMXTlzUCsn+Lr+GMOG6M136CxlDR/oIa5E5ZTm1BoYw/7KPweur0V5Hvk4BDRI6m3YNHqH30b4+86yiea1VWWwbeks2oT0zm1LS8XMF/bPwPtk8pBTUiBVorFZSgI8WyN2/IZMQxJhmpADTtVufF11fmmMS6OzfmtZEQa9rsS3ZFHcq1Mfebx76QPDEdck5wy4xAOcrWS7G3k/XZfO5mMZ9hGKrqvW1Pkuq3d2RykAnurLcx5g==",
        ),
    ];
    const SECP256K1: &str = "-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEwS1XTzZI2ZdSwxcAO5xkFtDMJgEUE/Q7
buSca3JKYdwVS9845MsPVGi9WahoOPG1/v5f358QJNDa6CO/u8VYjg==
-----END PUBLIC KEY-----
";

    #[test]
    fn keys_of_every_kind_verify_what_openssl_signed() {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        for (name, pem, signature) in SIGNED {
            let keys = PublicKey::read_all(pem).unwrap();
            let signature = STANDARD.decode(signature).unwrap();
            assert!(keys[0].verifies(MESSAGE, &signature), "{name}");
            assert!(!keys[0].verifies(b"other\n", &signature), "{name}");
            assert!(!keys[0].verifies(MESSAGE, &signature[1..]), "{name}");
            assert!(!keys[0].verifies(MESSAGE, &[]), "{name}");
        }
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let cases = [
            ("", "no public key"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "damaged"),
            ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n", "damaged"),
            (SECP256K1, "1.3.132.0.10 cannot be used"),
        ];
        for (text, why) in cases {
            let refused = PublicKey::read_all(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn a_text_may_hold_several_keys() {
        let all: String = SIGNED.iter().map(|(_, pem, _)| *pem).collect();
        assert_eq!(PublicKey::read_all(&all).unwrap().len(), SIGNED.len());
    }
}
