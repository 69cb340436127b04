//! Holds the stand-in for kube-apiserver to what the documents that it follows say, with curl as a client that knows
//! nothing of this project.

#![cfg(feature = "kubernetes")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::certs::{Key, Pair, Pki, ServerCertificate};
use support::kube_server::{Client, Cut, Fault, KubeServer, On, Port, Request, SERVICES, Service};
use support::kubeconfig::KubeConfig;
use support::vm::{HOST, Vm};
use support::{Process, TempDir, eventually};

/// curl's exit codes.
const REFUSED: i32 = 7;
const PARTIAL: i32 = 18;
const TIMED_OUT: i32 = 28;
const BAD_CERTIFICATE: i32 = 60;

struct Api {
    pki: Pki,
    server: KubeServer,
    dir: TempDir,
}

/// An answer as curl's `-i` prints it, its body put together from chunks.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn assert_status(&self, code: u16, reason: &str) -> Value {
        let status = self.json();
        assert_eq!((self.code, &status["code"], &status["reason"]), (code, &json!(code), &json!(reason)), "{self:?}");
        assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")));
        assert!(self.body.starts_with("{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{"), "{self:?}");
        status
    }
}

/// A watch by a curl of its own.
struct Watch {
    process: Process,
    out: PathBuf,
}

impl Watch {
    fn text(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    fn events(&self) -> Vec<Value> {
        // What a line breaks off at is no event.
        let whole = self.text();
        whole.split_inclusive('\n').filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// `ADDED default/web 1001`, waited for.
    #[track_caller]
    fn wait(&self, expect: &[String]) {
        eventually(&format!("events {expect:?}"), || {
            let seen: Vec<String> = self.events().iter().map(event).collect();
            if seen == expect { Ok(()) } else { Err((seen, self.text())) }
        });
    }
}

fn event(event: &Value) -> String {
    let (kind, object) = (event["type"].as_str().unwrap(), &event["object"]);
    let metadata = &object["metadata"];
    match kind {
        "BOOKMARK" => format!("BOOKMARK {}", metadata["resourceVersion"].as_str().unwrap()),
        "ERROR" => format!("ERROR {} {}", object["code"], object["message"].as_str().unwrap()),
        kind => {
            let text = |name| metadata[name].as_str().unwrap_or_else(|| panic!("no {name}: {event}"));
            format!("{kind} {}/{} {}", text("namespace"), text("name"), text("resourceVersion"))
        }
    }
}

impl Api {
    fn new() -> Api {
        let pki = Pki::new();
        let server = KubeServer::start(&pki, "127.0.0.1:0");
        Api { pki, server, dir: TempDir::new() }
    }

    fn curl(&self, client: Option<&Pair>, path: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sSN", "--max-time", "20", "--cacert"]).arg(self.pki.ca());
        if let Some(client) = client {
            command.arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key);
        }
        command.arg(format!("{}{path}", self.server.url()));
        command
    }

    fn administrator(&self, path: &str) -> Command {
        self.curl(Some(&self.pki.client(Key::EcSec1)), path)
    }

    fn get(&self, path: &str) -> Answer {
        answer(&mut self.administrator(path))
    }

    fn watch(&self, query: &str) -> Watch {
        let before = self.server.watches_opened();
        let out = self.dir.join(&format!("watch-{}", support::unique()));
        let mut command = self.administrator(&format!("{SERVICES}?watch=1&{query}"));
        let file = File::create(&out).unwrap();
        let watch = Watch { process: Process::spawn(command.stdout(file.try_clone().unwrap()).stderr(file)), out };
        eventually("the watch", || if self.server.watches_opened() > before { Ok(()) } else { Err(watch.text()) });
        watch
    }

    /// Those of a list: `default/web 1001`.
    fn names(list: &Value) -> Vec<String> {
        let item = |item: &Value| {
            let metadata = &item["metadata"];
            let text = |name: &str| metadata[name].as_str().unwrap().to_owned();
            format!("{}/{} {}", text("namespace"), text("name"), text("resourceVersion"))
        };
        list["items"].as_array().unwrap().iter().map(item).collect()
    }
}

fn answer(command: &mut Command) -> Answer {
    let text = support::run(command.arg("-i"));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let code = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Answer { code, headers, body: body.to_owned() }
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

fn node_port(name: &str, port: u16) -> Service {
    Service::node_port("default", name, &[Port::tcp(80, port)])
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn a_list_is_as_documented() {
    let api = Api::new();
    let empty = api.get(SERVICES);
    assert_eq!(
        empty.body,
        "{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"1000\"},\"items\":[]}\n"
    );
    assert_eq!(empty.headers["Content-Length"], empty.body.len().to_string());
    assert_eq!(empty.headers["Cache-Control"], "no-cache, private");
    assert_eq!(empty.headers["Content-Type"], "application/json");
    let own = ["Audit-Id", "Date", "X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid"];
    assert!(own.iter().all(|name| empty.headers.contains_key(*name)), "{empty:?}");

    api.server.apply(node_port("web", 30080));
    let lb = [Port::tcp(80, 30081), Port::udp(53, 30082)];
    api.server.apply(Service::load_balancer("kube-system", "lb", &lb, &["192.168.143.2"]).without_node_ports());
    api.server.apply(Service::cluster_ip(
        "default",
        "inner",
        &[Port { target: "http".to_owned(), ..Port::tcp(80, 0) }],
    ));
    let full = api.get(SERVICES);
    assert_eq!(full.headers["Transfer-Encoding"], "chunked");
    let list = full.json();
    assert_eq!(Api::names(&list), ["default/inner 1003", "default/web 1001", "kube-system/lb 1002"]);
    assert_eq!(list["metadata"], json!({"resourceVersion": "1003"}));
    let (inner, web, lb) = (&list["items"][0], &list["items"][1], &list["items"][2]);
    assert!(web["kind"].is_null() && web["apiVersion"].is_null());
    assert_eq!(web["spec"]["type"], "NodePort");
    let port = json!({"name": "p80", "protocol": "TCP", "port": 80, "targetPort": 80, "nodePort": 30080});
    assert_eq!(web["spec"]["ports"], json!([port]));
    assert_eq!(web["status"], json!({"loadBalancer": {}}));
    assert_eq!(inner["spec"]["ports"][0]["targetPort"], "http");
    assert!(inner["spec"]["ports"][0]["nodePort"].is_null());
    assert_eq!(lb["spec"]["allocateLoadBalancerNodePorts"], false);
    assert_eq!(lb["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.168.143.2", "ipMode": "VIP"}]));
    for field in ["uid", "creationTimestamp", "managedFields"] {
        assert!(!web["metadata"][field].is_null(), "{web}");
    }
    let size = web.to_string().len();
    assert!((900..1400).contains(&size), "{size} bytes: {web}");

    // As old as one likes, not from the future.
    assert_eq!(Api::names(&api.get(&format!("{SERVICES}?resourceVersion=0")).json()).len(), 3);
    assert_eq!(Api::names(&api.get(&format!("{SERVICES}?resourceVersion=1001")).json()).len(), 3);
    let early = api.get(&format!("{SERVICES}?resourceVersion=2000")).assert_status(504, "Timeout");
    assert_eq!(early["message"], "Timeout: Too large resource version: 2000, current: 1003");
    api.get(&format!("{SERVICES}?resourceVersion=x")).assert_status(400, "BadRequest");
    api.get("/api/v1/nothing").assert_status(404, "NotFound");
    answer(api.administrator(SERVICES).args(["-X", "DELETE"])).assert_status(405, "MethodNotAllowed");
    assert_eq!(api.get("/version").json()["major"], "1");
    let log = api.server.requests();
    assert!(log.iter().all(|request| request.client == Client::Certificate), "{log:?}");
    assert_eq!(log[3].parameter("resourceVersion"), "1001");
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn a_watch_replays_and_then_follows() {
    let api = Api::new();
    api.server.apply(node_port("a", 30001));
    api.server.apply(node_port("b", 30002));
    let from = |version: &str| api.watch(&format!("resourceVersion={version}"));
    let (behind, abreast, all, absent) = (from("1001"), from("1002"), from("0"), api.watch(""));
    behind.wait(&["ADDED default/b 1002".to_owned()]);
    api.server.apply(node_port("a", 30003));
    api.server.delete("default", "b");
    let news = ["MODIFIED default/a 1003", "DELETED default/b 1004"];
    let after = |before: &[&str]| before.iter().chain(&news).map(ToString::to_string).collect::<Vec<_>>();
    behind.wait(&after(&["ADDED default/b 1002"]));
    abreast.wait(&after(&[]));
    let state = ["ADDED default/a 1001", "ADDED default/b 1002"];
    all.wait(&after(&state));
    absent.wait(&after(&state));
    let events = behind.events();
    let object = &events[1]["object"];
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("Service"), &json!("v1")));
    assert_eq!(object["spec"]["ports"][0]["nodePort"], 30003);
    assert!(behind.text().starts_with("{\"type\":\"ADDED\",\"object\":{\"kind\":\"Service\",\"apiVersion\":\"v1\","));
    // Who it is stays.
    assert_eq!(all.events()[0]["object"]["metadata"]["uid"], object["metadata"]["uid"]);

    api.server.wait_watches(4);
    drop(all);
    api.server.wait_watches(3);
}

/// Header and framing, and the connection that stays.
#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn a_watch_ends_in_order_at_its_time() {
    let api = Api::new();
    api.server.apply(node_port("a", 30001));
    let mut command = api.administrator(&format!("{SERVICES}?watch=true&timeoutSeconds=1"));
    command.args(["-i", "--raw", "-w", "[%{num_connects}]"]).arg(format!("{}/version", api.server.url()));
    let text = support::run(&mut command);
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Transfer-Encoding: chunked") && !head.contains("Content-Length"), "{head}");
    let (chunk, rest) = rest.split_once("\r\n").unwrap();
    let size = usize::from_str_radix(chunk, 16).unwrap();
    assert!(rest[..size].ends_with("}}}}\n") && rest[..size].matches('\n').count() == 1, "{rest}");
    assert!(rest[size..].starts_with("\r\n0\r\n\r\n[1]HTTP/1.1 200 OK"), "{rest}");
    assert!(text.ends_with("[0]"), "a second connection: {text}");
    assert_eq!(api.server.watches(), 0);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn bookmarks_come_to_who_asks_for_them() {
    let api = Api::new();
    let asked = api.watch("resourceVersion=1000&allowWatchBookmarks=true");
    let other = api.watch("resourceVersion=1000");
    api.server.advance(10);
    api.server.bookmark();
    api.server.apply(node_port("a", 30001));
    asked.wait(&["BOOKMARK 1010".to_owned(), "ADDED default/a 1011".to_owned()]);
    other.wait(&["ADDED default/a 1011".to_owned()]);
    let expect = json!({"kind": "Service", "apiVersion": "v1", "spec": {}, "status": {"loadBalancer": {}},
        "metadata": {"resourceVersion": "1010", "creationTimestamp": null}});
    assert_eq!(asked.events()[0]["object"], expect);

    api.server.bookmark_every(Duration::from_millis(50));
    let often = api.watch("resourceVersion=1011&allowWatchBookmarks=1");
    eventually("two bookmarks", || if often.events().len() >= 2 { Ok(()) } else { Err(often.text()) });
    api.server.bookmark_every(Duration::from_secs(60));
    // The last one before the end.
    let ending = api.watch("resourceVersion=1011&allowWatchBookmarks=1&timeoutSeconds=3");
    ending.wait(&["BOOKMARK 1011".to_owned()]);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn an_old_version_is_expired_both_ways() {
    let api = Api::new();
    for port in 30001..30004 {
        api.server.apply(node_port("a", port));
    }
    api.server.compact();
    let old = answer(&mut api.administrator(&format!("{SERVICES}?watch=1&resourceVersion=1001")));
    assert_eq!(old.code, 200);
    assert_eq!(event(&old.json()), "ERROR 410 too old resource version: 1001 (1003)");
    let object = &old.json()["object"];
    let status = ["kind", "apiVersion", "status", "reason"].map(|name| object[name].as_str().unwrap().to_owned());
    assert_eq!(status, ["Status", "v1", "Failure", "Expired"]);

    let mut watch = api.watch("resourceVersion=1003");
    api.server.apply(node_port("a", 30005));
    watch.wait(&["MODIFIED default/a 1004".to_owned()]);
    api.server.expire_watches();
    assert_eq!(watch.process.wait(), Some(0), "{}", watch.text());
    assert!(watch.text().contains("\"type\":\"ERROR\"") && watch.text().contains("\"code\":410"), "{}", watch.text());

    api.server.fault(On::Watch, Fault::Status { code: 410, retry_after: None }, Some(1));
    let path = format!("{SERVICES}?watch=1&timeoutSeconds=1&resourceVersion=1004");
    assert_eq!(api.get(SERVICES).code, 200);
    api.get(&path).assert_status(410, "Expired");
    assert_eq!(api.get(&path).code, 200);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn a_list_comes_in_chunks() {
    let api = Api::new();
    for number in 0..5 {
        api.server.apply(node_port(&format!("s{number}"), 30000 + number));
    }
    let part = |token: &str| {
        let list = api.get(&format!("{SERVICES}?limit=2&continue={token}"));
        let value = list.json();
        let token = value["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        (Api::names(&value), value["metadata"].clone(), token)
    };
    let (first, metadata, token) = part("");
    assert_eq!(first, ["default/s0 1001", "default/s1 1002"]);
    assert_eq!((&metadata["resourceVersion"], &metadata["remainingItemCount"]), (&json!("1005"), &json!(3)));
    // What happens in between does not show.
    api.server.delete("default", "s2");
    api.server.apply(node_port("s4", 31000));
    let (second, metadata, next) = part(&token);
    assert_eq!(second, ["default/s2 1003", "default/s3 1004"]);
    assert_eq!(metadata["resourceVersion"], "1005");
    let (third, metadata, _) = part(&next);
    assert_eq!(third, ["default/s4 1005"]);
    assert_eq!(metadata, json!({"resourceVersion": "1005"}));
    // "0" is for the cache, which gives all.
    assert_eq!(Api::names(&api.get(&format!("{SERVICES}?limit=2&resourceVersion=0")).json()).len(), 4);

    api.server.compact();
    let expired = api.get(&format!("{SERVICES}?limit=2&continue={token}")).assert_status(410, "Expired");
    let token = expired["metadata"]["continue"].as_str().unwrap();
    assert_eq!(part(token).0, ["default/s3 1004", "default/s4 1007"]);
    api.get(&format!("{SERVICES}?limit=2&continue=x")).assert_status(400, "BadRequest");
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn who_the_client_is() {
    let api = Api::new();
    for key in [Key::EcSec1, Key::EcPkcs8, Key::RsaPkcs1, Key::RsaPkcs8, Key::Ed25519] {
        let pair = api.pki.client(key);
        let label = std::fs::read_to_string(&pair.key).unwrap();
        let expect = match key {
            Key::EcSec1 => "-----BEGIN EC PRIVATE KEY-----",
            Key::RsaPkcs1 => "-----BEGIN RSA PRIVATE KEY-----",
            _ => "-----BEGIN PRIVATE KEY-----",
        };
        assert_eq!(label.lines().next(), Some(expect), "{key:?}");
        assert_eq!(answer(&mut api.curl(Some(&pair), SERVICES)).code, 200, "{key:?}");
    }
    assert!(!api.curl(Some(&api.pki.client(Key::Mismatch)), SERVICES).output().unwrap().status.success());

    let nobody = answer(&mut api.curl(None, SERVICES));
    nobody.assert_status(401, "Unauthorized");
    assert!(!nobody.headers.contains_key("X-Kubernetes-Pf-Flowschema-Uid"), "{nobody:?}");
    answer(&mut api.curl(None, &format!("{SERVICES}?watch=1"))).assert_status(401, "Unauthorized");
    let foreign = api.pki.foreign_client();
    answer(&mut api.curl(Some(&foreign), SERVICES)).assert_status(401, "Unauthorized");
    api.server.alert_foreign_certificates(true);
    let alerted = api.curl(Some(&foreign), SERVICES).output().unwrap();
    assert!(String::from_utf8_lossy(&alerted.stderr).contains("alert"), "{alerted:?}");
    assert_eq!(api.get(SERVICES).code, 200);

    let token = |token: &str| {
        let header = format!("Authorization: Bearer {token}");
        answer(api.curl(None, SERVICES).args(["-H", &header])).code
    };
    assert_eq!(token("good"), 401);
    api.server.add_token("good");
    assert_eq!((token("good"), token("bad")), (200, 401));
    let good = |request: &Request| request.client == Client::Token;
    assert_eq!(api.server.wait_requests(1, good).len(), 1);
    api.server.forget_tokens();
    assert_eq!(token("good"), 401);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn who_the_server_is() {
    for (kind, code) in [
        (ServerCertificate::Good, 0),
        (ServerCertificate::Expired, BAD_CERTIFICATE),
        (ServerCertificate::ForeignCa, BAD_CERTIFICATE),
    ] {
        let pki = Pki::with(&["IP:127.0.0.1"], kind);
        let api = Api { server: KubeServer::start(&pki, "127.0.0.1:0"), pki, dir: TempDir::new() };
        assert_exit(&api.administrator(SERVICES).output().unwrap(), code);
    }
    let pki = Pki::with(&["DNS:kubernetes.default.svc"], ServerCertificate::Good);
    let api = Api { server: KubeServer::start(&pki, "127.0.0.1:0"), pki, dir: TempDir::new() };
    assert_exit(&api.administrator(SERVICES).output().unwrap(), BAD_CERTIFICATE);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn requests_go_wrong_as_told() {
    let api = Api::new();
    for number in 0..50 {
        api.server.apply(node_port(&format!("s{number}"), 30000 + number));
    }
    let reasons = [(401, "Unauthorized"), (403, "Forbidden"), (429, "TooManyRequests"), (500, "InternalError")];
    for (code, reason) in reasons {
        api.server.fault(On::Any, Fault::Status { code, retry_after: None }, Some(1));
        api.get(SERVICES).assert_status(code, reason);
        assert_eq!(api.get(SERVICES).code, 200);
    }
    for code in [429, 503] {
        api.server.fault(On::List, Fault::Status { code, retry_after: Some(7) }, None);
        for _ in 0..3 {
            let answer = api.get(SERVICES);
            assert_eq!((answer.code, &*answer.headers["Retry-After"]), (code, "7"), "{answer:?}");
            assert_eq!(answer.json()["details"]["retryAfterSeconds"], 7);
        }
        assert_eq!(api.get(&format!("{SERVICES}?watch=1&timeoutSeconds=1")).code, 200);
        api.server.clear_faults();
    }
    api.server.fault(On::Any, Fault::Text { code: 429, retry_after: Some(1) }, Some(1));
    let text = api.get(SERVICES);
    assert_eq!((text.code, &*text.body), (429, "Too many requests, please try again later.\n"));
    assert_eq!((&*text.headers["Content-Type"], &*text.headers["Retry-After"]), ("text/plain; charset=utf-8", "1"));
    let whole = api.get(SERVICES).body;
    for (fault, code) in [
        (Fault::HandshakeStall, TIMED_OUT),
        (Fault::Mute, TIMED_OUT),
        (Fault::DropAfterHead, PARTIAL),
        (Fault::Stall, TIMED_OUT),
    ] {
        api.server.fault(On::Any, fault, Some(1));
        let output = api.administrator(SERVICES).args(["--max-time", "1"]).output().unwrap();
        // A connection cut without TLS's own end is one error or another to curl.
        assert!(
            output.status.code() == Some(code) || code == PARTIAL && !output.status.success(),
            "{fault:?} {output:?}"
        );
        let half = fault == Fault::Stall;
        assert_eq!(!output.stdout.is_empty(), half, "{fault:?}");
        assert!(output.stdout.len() < whole.len());
        assert_eq!(api.get(SERVICES).body, whole, "{fault:?}");
    }
    api.server.raw_list(Some(b"{\"items\":17}".to_vec()));
    assert_eq!(api.get(SERVICES).body, "{\"items\":17}");
    api.server.raw_list(None);
    assert_eq!(api.get(SERVICES).body, whole);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn watches_go_wrong_as_told() {
    let api = Api::new();
    let query = "resourceVersion=1000&allowWatchBookmarks=true";
    let mut watch = api.watch(query);
    api.server.cut_watches(Cut::InOrder);
    assert_eq!(watch.process.wait(), Some(0));
    for cut in [Cut::MidLine, Cut::BetweenLines] {
        let mut watch = api.watch(query);
        api.server.cut_watches(cut);
        assert_ne!(watch.process.wait(), Some(0), "{cut:?}");
        assert_eq!(watch.text().contains("{\"type\""), cut == Cut::MidLine, "{}", watch.text());
        assert_eq!(watch.events().len(), 0);
    }
    api.server.wait_watches(0);

    let mut watch = api.watch(query);
    api.server.stall_watches(true);
    api.server.apply(node_port("a", 30001));
    api.server.bookmark();
    // Goes out all the same, and shows that nothing went out before.
    let odd = json!({"type": "ODD", "object": {"metadata": {"namespace": "n", "name": "o", "resourceVersion": "1"}}});
    api.server.raw_event(format!("{odd}\n").as_bytes());
    api.server.stall_watches(false);
    watch.wait(&["ODD n/o 1".to_owned(), "ADDED default/a 1001".to_owned()]);
    // More than any buffer between the two.
    let long = vec![b'x'; 64 << 20];
    let begun = Instant::now();
    api.server.raw_event(&long);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(api.server.watches(), 1);
    eventually("64 MB", || match std::fs::metadata(&watch.out).unwrap().len() {
        length if length >= long.len() as u64 => Ok(()),
        length => Err(length),
    });
    api.server.stop();
    assert_ne!(watch.process.wait(), Some(0));
    assert_eq!(api.server.watches(), 0);
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn it_comes_and_goes_on_one_port() {
    let api = Api::new();
    api.server.apply(node_port("a", 30001));
    let before = api.get(SERVICES).body;
    let watch = api.watch("resourceVersion=1001");
    api.server.refuse();
    assert_exit(&api.administrator(SERVICES).output().unwrap(), REFUSED);
    api.server.apply(node_port("a", 30002));
    watch.wait(&["MODIFIED default/a 1002".to_owned()]);
    api.server.resume();
    assert_ne!(api.get(SERVICES).body, before);
    api.server.stop();
    assert_exit(&api.administrator(SERVICES).output().unwrap(), REFUSED);
    api.server.resume();
    api.server.restart();
    assert_eq!(api.get(SERVICES).json()["metadata"]["resourceVersion"], "1002");
    let other = Pki::new();
    api.server.restart_with(&other);
    assert_exit(&api.administrator(SERVICES).output().unwrap(), BAD_CERTIFICATE);
    let api = Api { pki: other, ..api };
    assert_eq!(api.get(SERVICES).json()["metadata"]["resourceVersion"], "1002");
}

#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn a_kubeconfig_is_k3ss() {
    let (pki, dir) = (Pki::new(), TempDir::new());
    let path = dir.join("k3s.yaml");
    let config = KubeConfig::new(&pki, "https://127.0.0.1:6443");
    config.write(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let data = |path: &std::path::Path| support::certs::base64_of(path);
    let client = pki.client(Key::EcSec1);
    let expect = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://127.0.0.1:6443\n  \
         name: default\ncontexts:\n- context:\n    cluster: default\n    user: default\n  name: default\n\
         current-context: default\nkind: Config\npreferences: {{}}\nusers:\n- name: default\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\n",
        data(&pki.ca()),
        data(&client.certificate),
        data(&client.key)
    );
    assert_eq!(text, expect);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let config = KubeConfig {
        files: true,
        ca: None,
        insecure_skip_tls_verify: true,
        tls_server_name: Some("localhost".to_owned()),
        token_file: Some(dir.join("token")),
        ..KubeConfig::with_token(&pki, "https://localhost:1", "secret")
    };
    let text = config.text();
    for line in ["insecure-skip-tls-verify: true", "tls-server-name: localhost", "token: secret", "tokenFile: "] {
        assert!(text.contains(&format!("\n    {line}")), "{text}");
    }
    assert!(KubeConfig { files: true, ..KubeConfig::new(&pki, "") }.text().contains("    client-key: /"));
    assert!(KubeConfig::anonymous(&pki, "").text().ends_with("  user: {}\n"));
}

#[test]
#[ignore = "needs root, openssl, curl, iproute2 (scripts/deps.sh openssl)"]
fn it_serves_in_a_namespace() {
    let (vm, pki) = (Vm::new(), Pki::new());
    let server = KubeServer::start_in(&vm.host, &pki, &format!("{HOST}:6443"));
    let client = pki.client(Key::EcSec1);
    let status = |url: &str| {
        let mut command = vm.guest.command("curl");
        command.args(["-sS", "-o", "/dev/null", "--max-time", "10", "-w", "%{http_code}", "--cacert"]).arg(pki.ca());
        command.arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key).arg(url);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let url = format!("https://{HOST}:6443{SERVICES}");
    assert_eq!(status(&url), "200");
    server.restart();
    assert_eq!(status(&url), "200");
    server.stop();
    assert_eq!(status(&url), "000");
}

/// Not a measurement: that it is no matter of seconds, even unoptimized.
#[test]
#[ignore = "needs openssl, curl (scripts/deps.sh openssl)"]
fn five_thousand_services() {
    let api = Api::new();
    for number in 0..5000 {
        api.server.apply(node_port(&format!("service-{number:04}"), 30000));
    }
    for turn in 0..3 {
        let begun = Instant::now();
        let list = api.get(SERVICES);
        println!("list {turn}: {} bytes in {:?}", list.body.len(), begun.elapsed());
        assert_eq!(Api::names(&list.json()).len(), 5000);
    }
    let watch = api.watch("");
    let before = Instant::now();
    let applied = api.server.apply(node_port("last", 30001));
    assert!(applied.written >= before && applied.written <= Instant::now());
    let expect = format!("ADDED default/last {}", applied.version);
    eventually("the last event", || match watch.events().last().map(event) {
        Some(last) if last == expect => Ok(()),
        other => Err(other),
    });
}
