//! kubeconfig files: of the current context, where the server is and how to prove who we are.
//!
//! YAML (or JSON, which is YAML) as `kubectl` reads it. Aliases, merge keys and tags are refused, so nothing in a file can
//! grow; sizes and depth are limited. Fields that would ask for more than this agent does (`exec`, `auth-provider`,
//! `username`, `as`, `proxy-url`) are refused by name rather than ignored.
//! Source of the format: the Kubernetes reference, "kubeconfig (v1)".

mod server;
mod yaml;

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use self::server::{is_server_name, server};
use self::yaml::{Map, Node};

/// The largest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// The longest bearer token, in bytes: it goes into a header of every request.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// The longest path of a file, in bytes (Linux's `PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;

/// Names that an error lists, so that a typing error shows; more are counted.
const NAMES_SHOWN_MAX: usize = 5;

/// What is shown of a name, in characters.
const NAME_CHARS_MAX: usize = 64;

/// What a user may be proved with that is not supported. Each would need a program to be run, or rights that an agent
/// that only lists Services has no use for.
const REFUSED: [&str; 8] =
    ["exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra"];

/// What the current context says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    /// `https://HOST[:PORT][/PATH]`, without a slash at its end.
    pub server: String,
    /// What the server's certificate has to be for: `tls-server-name`, else the host in `server`.
    pub server_name: String,
    /// Certificates of the authorities that the server's is to come from, PEM.
    pub certificate_authority: Option<Blob>,
    /// `insecure-skip-tls-verify: true`.
    pub insecure_skip_tls_verify: bool,
    /// Our certificate, PEM.
    pub client_certificate: Option<Blob>,
    /// Its key, PEM.
    pub client_key: Option<Blob>,
    /// A bearer token.
    pub token: Option<Blob>,
}

/// Something that is in the file, or in another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The field, for messages: `users[name=default].user.client-key-data`.
    pub field: String,
    /// Where it is.
    pub place: Place,
}

/// See [`Blob`].
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// Here; what was base64 is decoded.
    Inline(Vec<u8>),
    /// In that file; relative to the kubeconfig's directory.
    File(PathBuf),
}

/// Secrets are not for logs.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Place::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// Why a kubeconfig cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeconfigError {
    /// Where: a field's path, or a line of the file.
    pub place: String,
    /// What is wrong there, and what to do.
    pub cause: String,
}

impl fmt::Display for KubeconfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)
    }
}

impl std::error::Error for KubeconfigError {}

/// Reads what the current context says.
///
/// # Errors
/// Names the field, or the line of YAML, and the cause.
pub fn parse(text: &str) -> Result<Kubeconfig, KubeconfigError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(KubeconfigError { place: "the file".into(), cause: format!("larger than {FILE_BYTES_MAX} bytes") });
    }
    let root = yaml::parse(text)?;
    let Node::Map(map) = &root else {
        return Err(KubeconfigError { place: "the file".into(), cause: "expected a map".into() });
    };
    let root = At { path: String::new(), map };
    let Some(current) = root.text("current-context")? else {
        let cause = format!("not given; contexts has {}", names(&root, "contexts"));
        return Err(root.error("current-context", cause));
    };
    let context = named(&root, "contexts", current, "context", "current-context")?;
    let cluster = follow(&root, &context, "clusters", "cluster")?;
    let user = follow(&root, &context, "users", "user")?;
    read(&cluster, &user)
}

/// What a context names: a cluster or a user.
fn follow<'a>(root: &At<'a>, context: &At<'a>, list: &str, key: &str) -> Result<At<'a>, KubeconfigError> {
    let Some(name) = context.text(key)? else {
        return Err(context.error(key, format!("not given; {list} has {}", names(root, list))));
    };
    named(root, list, name, key, &context.place(key))
}

fn read(cluster: &At<'_>, user: &At<'_>) -> Result<Kubeconfig, KubeconfigError> {
    let url = cluster.text("server")?.ok_or_else(|| cluster.error("server", "not given".into()))?;
    let (server, host) = server(url).map_err(|cause| cluster.error("server", cause.into()))?;
    let server_name = cluster.text("tls-server-name")?.unwrap_or(host);
    if !is_server_name(server_name) {
        return Err(cluster.error("tls-server-name", "neither a name nor an address".into()));
    }
    if cluster.given("proxy-url") {
        return Err(
            cluster.error("proxy-url", "proxies are not supported: use an address that is reached directly".into())
        );
    }
    let insecure_skip_tls_verify = match cluster.text("insecure-skip-tls-verify")? {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(cluster.error("insecure-skip-tls-verify", "expected true or false".into())),
    };
    let certificate_authority = pem(cluster, "certificate-authority")?;
    match (&certificate_authority, insecure_skip_tls_verify) {
        (Some(blob), true) => {
            let cause = "given together with insecure-skip-tls-verify: leave one of them out".into();
            return Err(KubeconfigError { place: blob.field.clone(), cause });
        }
        (None, false) => {
            let cause = "not given, nor certificate-authority; the system's authorities are not used".into();
            return Err(cluster.error("certificate-authority-data", cause));
        }
        _ => {}
    }
    if let Some(field) = REFUSED.iter().find(|field| user.given(field)) {
        return Err(user.error(field, "not supported: use a client certificate, a token or a token file".into()));
    }
    let client_certificate = pem(user, "client-certificate")?;
    let client_key = pem(user, "client-key")?;
    let missing = match (&client_certificate, &client_key) {
        (Some(_), None) => Some(("client-key", "client-certificate")),
        (None, Some(_)) => Some(("client-certificate", "client-key")),
        _ => None,
    };
    if let Some((missing, there)) = missing {
        return Err(user.error(missing, format!("not given, but {there} is: both are needed")));
    }
    Ok(Kubeconfig {
        server,
        server_name: server_name.to_owned(),
        certificate_authority,
        insecure_skip_tls_verify,
        client_certificate,
        client_key,
        token: bearer(user)?,
    })
}

/// `KEY-data`, which is base64 of PEM, or the file that `KEY` names.
fn pem(at: &At<'_>, key: &str) -> Result<Option<Blob>, KubeconfigError> {
    let data = format!("{key}-data");
    let Some(text) = at.text(&data)? else { return at.file(key) };
    let bytes: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    // Its error would quote the byte that it does not like.
    let bytes = STANDARD.decode(bytes).map_err(|_| at.error(&data, "not base64".into()))?;
    if !bytes.windows(PEM.len()).any(|part| part == PEM) {
        return Err(at.error(&data, "decoded, it is not PEM: no -----BEGIN in it".into()));
    }
    Ok(Some(Blob { field: at.place(&data), place: Place::Inline(bytes) }))
}

/// How PEM begins.
const PEM: &[u8] = b"-----BEGIN";

fn bearer(user: &At<'_>) -> Result<Option<Blob>, KubeconfigError> {
    let Some(text) = user.text("token")? else { return user.file("tokenFile") };
    let token = token(text).map_err(|cause| user.error("token", cause.into()))?;
    Ok(Some(Blob { field: user.place("token"), place: Place::Inline(token.as_bytes().to_vec()) }))
}

/// A token as it goes into a header: without white space around it. For tokens from files, too.
///
/// # Errors
/// Says what is wrong, and nothing of the token.
pub fn token(text: &str) -> Result<&str, &'static str> {
    let token = text.trim();
    if token.is_empty() {
        return Err("empty");
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err("longer than 64 KiB");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has spaces, control characters or others that tokens have not");
    }
    Ok(token)
}

/// A map and where it is.
struct At<'a> {
    /// Empty for the whole file.
    path: String,
    map: &'a Map,
}

impl<'a> At<'a> {
    fn place(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn error(&self, key: &str, cause: String) -> KubeconfigError {
        KubeconfigError { place: self.place(key), cause }
    }

    /// Text that is not empty.
    fn text(&self, key: &str) -> Result<Option<&'a str>, KubeconfigError> {
        match self.map.get(key) {
            None | Some(Node::Null) => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(Node::List(_) | Node::Map(_)) => Err(self.error(key, "expected text".into())),
        }
    }

    fn given(&self, key: &str) -> bool {
        match self.map.get(key) {
            None | Some(Node::Null) => false,
            Some(Node::Text(text)) => !text.is_empty(),
            Some(Node::List(list)) => !list.is_empty(),
            Some(Node::Map(map)) => !map.is_empty(),
        }
    }

    fn file(&self, key: &str) -> Result<Option<Blob>, KubeconfigError> {
        let Some(path) = self.text(key)? else { return Ok(None) };
        if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
            return Err(self.error(key, "not a path".into()));
        }
        Ok(Some(Blob { field: self.place(key), place: Place::File(path.into()) }))
    }

    /// The entries of a list of maps, each with its name.
    fn entries(&self, list: &str) -> Vec<(&'a str, &'a Map)> {
        let entries = if let Some(Node::List(entries)) = self.map.get(list) { entries.as_slice() } else { &[] };
        let entry = |entry: &'a Node| {
            let Node::Map(map) = entry else { return None };
            let Some(Node::Text(name)) = map.get("name") else { return None };
            Some((name.as_str(), map))
        };
        entries.iter().filter_map(entry).collect()
    }
}

/// The entry of that name, which `place` asked for.
fn named<'a>(root: &At<'a>, list: &str, name: &str, key: &str, place: &str) -> Result<At<'a>, KubeconfigError> {
    let shown = shown(name);
    let found: Vec<&Map> = root.entries(list).into_iter().filter(|(n, _)| *n == name).map(|(_, map)| map).collect();
    let cause = match found.as_slice() {
        [] => format!("names {shown}, but {list} has {}", names(root, list)),
        [one] => match one.get(key) {
            Some(Node::Map(map)) => return Ok(At { path: format!("{list}[name={shown}].{key}"), map }),
            _ => {
                let cause = "expected a map".to_owned();
                return Err(KubeconfigError { place: format!("{list}[name={shown}].{key}"), cause });
            }
        },
        _ => format!("names {shown}, and {list} has more than one of that name"),
    };
    Err(KubeconfigError { place: place.to_owned(), cause })
}

/// The names in a list, for people.
fn names(root: &At<'_>, list: &str) -> String {
    let entries = root.entries(list);
    let mut text = entries.iter().take(NAMES_SHOWN_MAX).map(|(name, _)| shown(name)).collect::<Vec<_>>().join(", ");
    let more = entries.len().saturating_sub(NAMES_SHOWN_MAX);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

/// A name for people: shortened, and nothing in it that a terminal would act on.
fn shown(name: &str) -> String {
    let dots = if name.chars().nth(NAME_CHARS_MAX).is_some() { "..." } else { "" };
    format!("{}{dots}", name.chars().take(NAME_CHARS_MAX).collect::<String>().escape_debug())
}

#[cfg(test)]
mod tests;
