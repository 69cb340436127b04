//! Certificates and keys for tests, made by the command `openssl` in a directory that goes away. As in k3s, the server's
//! certificate and the clients' come from two authorities, and a client's file has its authority's certificate too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{TempDir, run};

/// Where a server of a test may be reached.
pub const NAMES: [&str; 6] =
    ["IP:127.0.0.1", "IP:::1", "IP:192.168.143.1", "IP:192.168.143.2", "DNS:localhost", "DNS:kubernetes.default.svc"];

/// What is wrong with the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ServerCertificate {
    Good,
    /// Its time is over.
    Expired,
    /// Not from the authority that [`Pki::ca`] names.
    ForeignCa,
}

/// The key that a client's certificate is made for, and the form of its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Key {
    /// `BEGIN EC PRIVATE KEY`, P-256: what k3s writes.
    EcSec1,
    /// `BEGIN PRIVATE KEY`, P-256.
    EcPkcs8,
    /// `BEGIN PRIVATE KEY`, P-384.
    EcP384,
    /// `BEGIN RSA PRIVATE KEY`, 2048 bits.
    RsaPkcs1,
    /// `BEGIN PRIVATE KEY`, 2048 bits.
    RsaPkcs8,
    /// `BEGIN PRIVATE KEY`.
    Ed25519,
    /// An EC key, but not the one of the certificate.
    Mismatch,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Both authorities and the server's certificate. Clients' are made when they are asked for.
pub struct Pki {
    dir: TempDir,
}

impl Pki {
    pub fn new() -> Pki {
        Pki::with(&NAMES, ServerCertificate::Good)
    }

    /// With a server certificate for these names: `IP:127.0.0.1`, `DNS:localhost`.
    pub fn with(names: &[&str], kind: ServerCertificate) -> Pki {
        let pki = Pki { dir: TempDir::new() };
        for authority in ["server-ca", "client-ca", "foreign-ca"] {
            pki.make_key(Key::EcSec1, authority);
            openssl(&["req", "-x509", "-new", "-days", "3650", "-subj", &format!("/CN=k3s-{authority}@1790000000")])
                .arg("-key")
                .arg(pki.dir.join(&format!("{authority}.key")))
                .arg("-out")
                .arg(pki.dir.join(&format!("{authority}.crt")))
                .finish();
        }
        pki.make_key(Key::EcSec1, "server");
        let authority = if kind == ServerCertificate::ForeignCa { "foreign-ca" } else { "server-ca" };
        let dates = match kind {
            ServerCertificate::Expired => ("20200101000000Z", "20210101000000Z"),
            ServerCertificate::Good | ServerCertificate::ForeignCa => VALID,
        };
        let extensions = format!("extendedKeyUsage=serverAuth\nsubjectAltName={}\n", names.join(","));
        pki.sign("server", authority, "/O=k3s/CN=k3s", &extensions, dates);
        pki
    }

    /// The authority to verify the server by.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("server-ca.crt")
    }

    /// The authority that the server verifies clients by.
    pub fn client_ca(&self) -> PathBuf {
        self.dir.join("client-ca.crt")
    }

    pub fn server(&self) -> Pair {
        self.pair("server")
    }

    /// The cluster's administrator, with a key of this kind.
    pub fn client(&self, key: Key) -> Pair {
        let name = format!("client-{key:?}");
        self.made(&name, || {
            self.make_key(if key == Key::Mismatch { Key::EcSec1 } else { key }, &name);
            self.sign(&name, "client-ca", ADMINISTRATOR, "extendedKeyUsage=clientAuth\n", VALID);
            if key == Key::Mismatch {
                self.make_key(Key::EcSec1, &name);
            }
        })
    }

    /// A client certificate that the server's authority for clients knows nothing of.
    pub fn foreign_client(&self) -> Pair {
        self.made("client-foreign", || {
            self.make_key(Key::EcSec1, "client-foreign");
            self.sign("client-foreign", "foreign-ca", ADMINISTRATOR, "extendedKeyUsage=clientAuth\n", VALID);
        })
    }

    fn made(&self, name: &str, make: impl FnOnce()) -> Pair {
        let pair = self.pair(name);
        if !pair.certificate.exists() {
            make();
        }
        pair
    }

    fn pair(&self, name: &str) -> Pair {
        Pair { certificate: self.dir.join(&format!("{name}.crt")), key: self.dir.join(&format!("{name}.key")) }
    }

    fn make_key(&self, key: Key, name: &str) {
        let out = self.dir.join(&format!("{name}.key"));
        let first: &[&str] = match key {
            Key::EcSec1 | Key::Mismatch => &["ecparam", "-name", "prime256v1", "-genkey", "-noout"],
            Key::EcPkcs8 => &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Key::EcP384 => &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Key::RsaPkcs1 => &["genrsa", "-traditional"],
            Key::RsaPkcs8 => &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Key::Ed25519 => &["genpkey", "-algorithm", "ED25519"],
        };
        let mut command = openssl(first).arg("-out").arg(&out);
        if key == Key::RsaPkcs1 {
            command = command.arg("2048");
        }
        command.finish();
    }

    /// Makes `NAME.crt` for `NAME.key`.
    ///
    /// By `openssl ca`, the only one of its commands to take a time in the past for the end.
    fn sign(&self, name: &str, authority: &str, subject: &str, extensions: &str, (from, to): (&str, &str)) {
        let file = |suffix: &str| self.dir.join(&format!("{name}.{suffix}"));
        let config = format!(
            "[ca]\ndefault_ca=own\n[own]\ndatabase={database}\nnew_certs_dir={dir}\nrand_serial=yes\ndefault_md=sha256\n\
             policy=any\nunique_subject=no\n[any]\norganizationName=optional\ncommonName=supplied\n[extensions]\n\
             basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature,keyEncipherment\n{extensions}",
            database = file("db").display(),
            dir = self.dir.path().display(),
        );
        fs::write(file("db"), "").unwrap();
        fs::write(file("cnf"), config).unwrap();
        openssl(&["req", "-new", "-subj", subject, "-key"]).arg(file("key")).arg("-out").arg(file("csr")).finish();
        openssl(&["ca", "-batch", "-notext", "-preserveDN", "-extensions", "extensions"])
            .args(&["-startdate", from, "-enddate", to, "-config"])
            .arg(file("cnf"))
            .arg("-cert")
            .arg(self.dir.join(&format!("{authority}.crt")))
            .arg("-keyfile")
            .arg(self.dir.join(&format!("{authority}.key")))
            .arg("-in")
            .arg(file("csr"))
            .arg("-out")
            .arg(file("crt"))
            .finish();
        if authority == "client-ca" {
            let chain = [fs::read(file("crt")).unwrap(), fs::read(self.client_ca()).unwrap()].concat();
            fs::write(file("crt"), chain).unwrap();
        }
    }
}

const VALID: (&str, &str) = ("20200101000000Z", "20491231000000Z");
const ADMINISTRATOR: &str = "/O=system:masters/CN=system:admin";

/// A file as `*-data` fields of a kubeconfig have it.
pub fn base64_of(path: &Path) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(fs::read(path).unwrap())
}

struct OpenSsl(Command);

fn openssl(args: &[&str]) -> OpenSsl {
    let mut command = Command::new("openssl");
    // Whatever this machine's own configuration says.
    command.env("OPENSSL_CONF", "/dev/null");
    OpenSsl(command).args(args)
}

impl OpenSsl {
    fn args(mut self, args: &[&str]) -> OpenSsl {
        self.0.args(args);
        self
    }

    fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> OpenSsl {
        self.0.arg(arg);
        self
    }

    fn finish(mut self) {
        if let Err(error) = Command::new("openssl").arg("version").output() {
            panic!("no openssl ({error}): run scripts/deps.sh openssl");
        }
        run(&mut self.0);
    }
}
