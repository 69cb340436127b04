//! The Engine API as far as churn needs it, for an engine that may be dead or stopped at any moment: every failure is a
//! value, and nothing waits for longer than [`PATIENCE`].

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longer than any fault lasts.
const PATIENCE: Duration = Duration::from_secs(60);

/// The label that says what a container of the host's network listens on.
pub const LISTENS: &str = "soak.listens";

/// One request. HTTP/1.0: the answer ends with the connection, and is not in chunks.
pub fn call(engine: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let failed = |error: std::io::Error| format!("{method} {path}: {error}");
    let mut stream = UnixStream::connect(engine).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let length = body.len();
    let head = format!(
        "{method} /v1.41{path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let Some((_, body)) = answer.split_once("\r\n\r\n").filter(|_| status.starts_with('2')) else {
        return Err(format!("{method} {path}: {:?}", answer.lines().last().unwrap_or("no answer")));
    };
    if body.is_empty() { Ok(Value::Null) } else { serde_json::from_str(body).map_err(|error| error.to_string()) }
}

/// What a container publishes: `("80/tcp", "0.0.0.0", 8080)`.
pub type Published<'a> = (&'a str, &'a str, u16);

/// A container that runs that command, with everything that `docker run -d -p …` asks for.
pub fn create(engine: &Path, command: &[&str], ports: &[Published], listens: Option<&str>) -> Result<String, String> {
    let (mut bindings, mut exposed) = (json!({}), json!({}));
    for (key, ip, port) in ports {
        bindings[*key] = json!([{"HostIp": ip, "HostPort": port.to_string()}]);
        exposed[*key] = json!({});
    }
    let network = if listens.is_some() { "host" } else { "default" };
    let config = json!({
        "Image": "busybox:local",
        "Cmd": command,
        // What is process 1 does not hear SIGTERM, and the engine would wait ten seconds for it.
        "StopSignal": "SIGKILL",
        "Labels": {LISTENS: listens.unwrap_or_default()},
        "ExposedPorts": exposed,
        "HostConfig": {"PortBindings": bindings, "NetworkMode": network},
    });
    let created = call(engine, "POST", "/containers/create", Some(&config))?;
    created["Id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id: {created}"))
}

pub fn start(engine: &Path, id: &str) -> Result<(), String> {
    call(engine, "POST", &format!("/containers/{id}/start"), None).map(drop)
}

/// As `docker rm -f`. One that is gone already is removed.
pub fn remove(engine: &Path, id: &str) -> Result<(), String> {
    match call(engine, "DELETE", &format!("/containers/{id}?force=1&v=1"), None) {
        Err(error) if !error.contains("No such container") => Err(error),
        _ => Ok(()),
    }
}
