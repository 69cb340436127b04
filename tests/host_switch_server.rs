//! Holds the stand-in for host-switch to what gvisor-tap-vsock documents and does: `tests/support/host_switch.rs`.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use support::TempDir;
use support::host_switch::{Fault, HostSwitch};

const EXPOSE: &str = r#"{"local":"127.0.0.1:8080","remote":"192.168.127.2:8080","protocol":"tcp"}"#;

fn connect(server: &HostSwitch) -> TcpStream {
    let stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// One request on a connection of its own, and everything that came for it.
fn send(server: &HostSwitch, method: &str, path: &str, body: &str) -> String {
    let mut stream = connect(server);
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// The status and the body of a POST to that operation.
fn post(server: &HostSwitch, operation: &str, body: &str) -> String {
    let answer = send(server, "POST", &format!("/services/forwarder/{operation}"), body);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    format!("{} {body}", head.split(' ').nth(1).unwrap_or("no answer"))
}

fn without_date(answer: &str) -> String {
    answer.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}

#[test]
fn an_expose_an_unexpose_and_the_list() {
    let server = HostSwitch::start();
    assert_eq!(post(&server, "all", ""), "200 []\n");
    assert_eq!(post(&server, "expose", EXPOSE), "200 ");
    assert_eq!(
        post(&server, "expose", r#"{"local":"127.0.0.1:53","remote":"192.168.127.2:53","protocol":"udp"}"#),
        "200 "
    );
    // As text, 10000 comes before 53.
    assert_eq!(post(&server, "expose", r#"{"local":"127.0.0.1:10000","remote":"192.168.127.2:1"}"#), "200 ");
    assert_eq!(post(&server, "expose", r#"{"local":"127.0.0.1:53","remote":"192.168.127.2:53"}"#), "200 ");
    assert_eq!(
        post(&server, "all", ""),
        concat!(
            r#"200 [{"local":"127.0.0.1:10000","remote":"192.168.127.2:1","protocol":"tcp"},"#,
            r#"{"local":"127.0.0.1:53","remote":"192.168.127.2:53","protocol":"tcp"},"#,
            r#"{"local":"127.0.0.1:53","remote":"192.168.127.2:53","protocol":"udp"},"#,
            r#"{"local":"127.0.0.1:8080","remote":"192.168.127.2:8080","protocol":"tcp"}]"#,
            "\n"
        )
    );
    assert_eq!(post(&server, "unexpose", r#"{"local":"127.0.0.1:53"}"#), "200 ");
    assert_eq!(post(&server, "unexpose", r#"{"local":"127.0.0.1:10000","protocol":"tcp"}"#), "200 ");
    assert_eq!(server.forwards(), ["tcp 127.0.0.1:8080 192.168.127.2:8080", "udp 127.0.0.1:53 192.168.127.2:53"]);
}

#[test]
fn errors_have_the_real_ones_status_and_words() {
    let server = HostSwitch::start();
    server.insert("tcp", "127.0.0.1:80", "192.168.127.2:80");
    let expose = |local: &str, remote: &str, protocol: &str| {
        post(&server, "expose", &format!(r#"{{"local":"{local}","remote":"{remote}","protocol":"{protocol}"}}"#))
    };
    let taken = "500 proxy already running for tcp on 127.0.0.1:80\n";
    assert_eq!(expose("127.0.0.1:80", "192.168.127.2:80", "tcp"), taken);
    assert_eq!(expose("127.0.0.1:80", "10.0.0.1:1", ""), taken);
    assert_eq!(expose("127.0.0.1:81", "192.168.127.2:81", "sctp"), "500 unknown protocol sctp\n");
    assert_eq!(expose("127.0.0.1:81", "[::1]:81", "tcp"), "500 invalid remote addr\n");
    assert_eq!(
        expose("127.0.0.1:81", "192.168.127.2:x", "tcp"),
        "500 strconv.ParseUint: parsing \"x\": invalid syntax\n"
    );
    assert_eq!(expose("127.0.0.1:81", "192.168.127.2", "tcp"), "400 address 192.168.127.2: missing port in address\n");
    assert_eq!(expose("127.0.0.1:81", "::1:81", "tcp"), "400 address ::1:81: too many colons in address\n");
    assert_eq!(expose("127.0.0.1:81", "", "tcp"), "400 address : missing port in address\n");
    assert_eq!(
        expose("127.0.0.1", "192.168.127.2:81", "tcp"),
        "500 listen tcp: address 127.0.0.1: missing port in address\n"
    );
    // Its handler panics.
    assert_eq!(expose("127.0.0.1:81", "guest:81", "tcp"), "no answer ");
    // Matched exactly, not by meaning.
    assert_eq!(post(&server, "unexpose", r#"{"local":":80","protocol":"tcp"}"#), "500 proxy not found\n");
    assert_eq!(post(&server, "unexpose", r#"{"local":"127.0.0.1:80","protocol":"udp"}"#), "500 proxy not found\n");
    let reason = "listen tcp 127.0.0.1:82: bind: address already in use";
    server.busy("127.0.0.1:82", Some(reason));
    assert_eq!(expose("127.0.0.1:82", "192.168.127.2:82", "tcp"), format!("500 {reason}\n"));
    server.busy("127.0.0.1:82", None);
    assert_eq!(expose("127.0.0.1:82", "192.168.127.2:82", "tcp"), "200 ");
    assert_eq!(server.forwards().len(), 2);
}

#[test]
fn bodies_that_are_no_request() {
    let server = HostSwitch::start();
    for (body, expect) in [
        ("", "EOF"),
        (" \n", "EOF"),
        ("{", "unexpected EOF"),
        (r#"{"local":"127"#, "unexpected EOF"),
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{x", "invalid character 'x' looking for beginning of object key string"),
        (r#"{"local" "x"}"#, "invalid character '\"' after object key"),
        (r#"{"local":"x" "#, "unexpected EOF"),
        (r#"{"local":"x";"#, "invalid character ';' after object key:value pair"),
        ("[1;", "invalid character ';' after array element"),
        ("nil", "invalid character 'i' in literal null (expecting 'u')"),
        ("\"a\nb\"", "invalid character '\\n' in string literal"),
        (r#""\x""#, "invalid character 'x' in string escape code"),
        ("-x", "invalid character 'x' in numeric literal"),
        ("[]", "json: cannot unmarshal array into Go value of type types.ExposeRequest"),
        (r#"{"local":1}"#, "json: cannot unmarshal number into Go struct field ExposeRequest.local of type string"),
        // Decoded, and then it has no remote address.
        ("null", "address : missing port in address"),
        (r#"{"LOCAL":"127.0.0.1:1","other":[{}]} and more"#, "address : missing port in address"),
    ] {
        assert_eq!(post(&server, "expose", body), format!("400 {expect}\n"), "{body}");
    }
    assert_eq!(post(&server, "unexpose", "{}"), "500 proxy not found\n");
}

#[test]
fn heads_are_those_of_go() {
    let server = HostSwitch::start();
    let error = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
                 Content-Length: 10\r\nConnection: close\r\n\r\npost only\n";
    assert_eq!(without_date(&send(&server, "GET", "/services/forwarder/expose", "")), error);
    assert_eq!(without_date(&send(&server, "PUT", "/services/forwarder/unexpose", "")), error);
    let done = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(without_date(&send(&server, "POST", "/services/forwarder/expose", EXPOSE)), done);
    assert_eq!(without_date(&send(&server, "POST", "/services/forwarder/unexpose", EXPOSE)), done);
    let list = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n[]\n";
    assert_eq!(without_date(&send(&server, "PUT", "/services/forwarder/all?x=y", "")), list);
    let nowhere = send(&server, "GET", "/", "");
    assert!(nowhere.starts_with("HTTP/1.1 404 Not Found\r\n") && nowhere.ends_with("\r\n\r\n404 page not found\n"));
    // What does not fit Go's buffer comes in chunks.
    (0..100).for_each(|n| server.insert("tcp", &format!("127.0.0.1:{n}"), "192.168.127.2:1"));
    let list = send(&server, "GET", "/services/forwarder/all", "");
    assert!(list.contains("\r\nTransfer-Encoding: chunked\r\n\r\n") && list.ends_with("}]\n\r\n0\r\n\r\n"), "{list}");
    // No request at all.
    let mut stream = connect(&server);
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("Connection: close\r\n\r\n400 Bad Request: missing required Host header"), "{answer}");
}

#[test]
fn an_empty_host_is_the_callers() {
    let server = HostSwitch::start();
    assert_eq!(post(&server, "expose", r#"{"local":"127.0.0.1:1","remote":":81"}"#), "200 ");
    assert_eq!(server.forwards(), ["tcp 127.0.0.1:1 127.0.0.1:81"]);
}

/// As a client that is not ours speaks to it, over both kinds of socket.
#[test]
fn curl_is_understood() {
    let dir = TempDir::new();
    let path = dir.join("api.sock");
    let curl = |args: &[&str]| {
        let output = Command::new("curl")
            .args(["-s", "--noproxy", "*", "--max-time", "10", "-w", "%{http_code}"])
            .args(args)
            .output();
        String::from_utf8(output.expect("curl, to be installed").stdout).unwrap()
    };
    let server = HostSwitch::start();
    let expose = format!("{}/services/forwarder/expose", server.url());
    let all = format!("{}/services/forwarder/all", server.url());
    let list = concat!(r#"[{"local":"127.0.0.1:8080","remote":"192.168.127.2:8080","protocol":"tcp"}]"#, "\n200");
    assert_eq!(curl(&["-d", EXPOSE, &expose]), "200");
    assert_eq!(curl(&[&all]), list);
    // Chunks from the client, and one connection for both.
    server.forget_requests();
    server.forget_all();
    assert_eq!(curl(&["-H", "Transfer-Encoding: chunked", "-d", EXPOSE, &expose, &all]), format!("200{list}"));
    let requests = server.requests();
    assert_eq!(requests.iter().map(|r| r.status).collect::<Vec<_>>(), [200, 200]);
    assert_eq!((requests[0].connection, &*requests[0].body), (requests[1].connection, EXPOSE));

    let server = HostSwitch::start_unix(&path);
    assert_eq!(server.url(), format!("http+unix://{}", path.display()));
    let socket = path.to_str().unwrap();
    assert_eq!(curl(&["--unix-socket", socket, "-d", EXPOSE, "http://h/services/forwarder/expose"]), "200");
    assert_eq!(curl(&["--unix-socket", socket, "http://h/services/forwarder/all"]), list);
    // Nobody's address is in it.
    let answer = curl(&["--unix-socket", socket, "-d", r#"{"remote":":1"}"#, "http://h/services/forwarder/expose"]);
    assert_eq!(answer, "address @: missing port in address\n400");
    drop(server);
    assert!(UnixStream::connect(&path).is_err());
}

#[test]
fn a_connection_stays_and_the_most_at_once_are_counted() {
    let server = HostSwitch::start();
    let mut streams: Vec<TcpStream> = (0..3).map(|_| connect(&server)).collect();
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /services/forwarder/all HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).unwrap();
        assert!(answer[..n].ends_with(b"\r\n\r\n[]\n"));
    };
    for _ in 0..3 {
        streams.iter_mut().for_each(ask);
    }
    assert_eq!(server.connections_max(), 3);
    let connections: Vec<u64> = server.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections[..3], connections[6..]);
    // A restart on the same port ends them, and knows nothing.
    server.insert("tcp", "127.0.0.1:1", "192.168.127.2:1");
    let address = server.addr();
    drop(server);
    assert_eq!(streams[0].read(&mut [0]).unwrap(), 0);
    let server = HostSwitch::start_at(address);
    assert_eq!(post(&server, "all", ""), "200 []\n");
}

#[test]
fn a_token_is_asked_for() {
    let server = HostSwitch::start();
    server.require_token(Some("secret"));
    assert_eq!(post(&server, "expose", EXPOSE), "401 Unauthorized\n");
    let mut stream = connect(&server);
    let head =
        "GET /services/forwarder/all HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer secret\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\n[]\n"));
    assert_eq!(server.requests()[1].authorization.as_deref(), Some("Bearer secret"));
    server.require_token(None);
    assert_eq!(post(&server, "all", ""), "200 []\n");
}

#[test]
fn faults_are_as_asked_for() {
    let server = HostSwitch::start();
    let all = || post(&server, "all", "");
    server.set_fault(Fault::Status(503, "busy\n".into()));
    assert_eq!(all(), "503 busy\n");
    server.set_fault(Fault::Html);
    assert!(post(&server, "expose", EXPOSE).starts_with("200 <!DOCTYPE html>"));
    server.set_fault(Fault::Raw(b"[{]".to_vec()));
    assert_eq!(all(), "200 [{]");
    server.set_fault(Fault::FailOnce { path: "/expose" });
    assert_eq!(all(), "200 []\n");
    assert_eq!(post(&server, "expose", EXPOSE), "500 temporary failure\n");
    assert_eq!(server.forwards(), Vec::<String>::new());
    server.set_fault(Fault::Reset);
    let mut stream = connect(&server);
    stream.write_all(b"GET /services/forwarder/all HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    server.set_fault(Fault::CutBody);
    let answer = send(&server, "POST", "/services/forwarder/expose", EXPOSE);
    assert!(answer.contains("\r\nContent-Length: 16\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(server.forwards().len(), 1);
    let answer = send(&server, "POST", "/services/forwarder/all", EXPOSE);
    assert!(answer.contains("[{\"local\":") && !answer.contains(']'), "{answer}");

    server.set_fault(Fault::CloseIdle);
    let mut stream = connect(&server);
    stream.write_all(b"GET /services/forwarder/all HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("}]\n") && !answer.contains("Connection"), "{answer}");

    server.set_fault(Fault::Delay(Duration::from_millis(30)));
    let begun = Instant::now();
    all();
    assert!(begun.elapsed() >= Duration::from_millis(30));
    server.set_fault(Fault::Endless);
    let mut stream = connect(&server);
    stream.write_all(b"GET /services/forwarder/all HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut some = vec![0; 10_000_000];
    stream.read_exact(&mut some).unwrap();
}

#[test]
fn what_stalled_is_carried_out_later() {
    let server = HostSwitch::start();
    server.set_fault(Fault::Stall);
    let mut stream = connect(&server);
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    write!(
        stream,
        "POST /services/forwarder/expose HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{EXPOSE}",
        EXPOSE.len()
    )
    .unwrap();
    assert!(matches!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    assert_eq!(server.requests()[0].status, 0);
    server.forget_requests();
    server.set_fault(Fault::None);
    server.wait_forwards(&["tcp 127.0.0.1:8080 192.168.127.2:8080"]);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    // One that stalls still ends with the server.
    server.set_fault(Fault::Stall);
    let mut stream = TcpStream::connect::<SocketAddr>(server.addr()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    drop(server);
}

/// Without a word, as Go's server does: a client that comes back later finds its connection closed.
#[test]
fn an_idle_connection_ends_after_ten_seconds() {
    let server = HostSwitch::start();
    let mut stream = connect(&server);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let begun = Instant::now();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!((9..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}
