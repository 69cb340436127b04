//! What has to hold of each parser, whatever it is given. A function a fuzz target; `tests/corpora.rs` calls them, too, with the
//! corpora and mutations of them, so that an ordinary compiler is enough to see that a defect is mended.
//!
//! Besides that nothing panics: the same input reads the same twice; an error is one short line; no document that was cut is
//! read; nothing is published that the input does not say; what is written reads back as it was; limits hold.

use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::unix::ffi::OsStringExt as _;
#[cfg(feature = "kubernetes")]
use std::path::Path;
use std::time::{Duration, Instant};

use rancher_desktop_agent::cli::document as shown;
use rancher_desktop_agent::config::{self, Wish};
use rancher_desktop_agent::control::request::{self, Filter, Op, Request};
use rancher_desktop_agent::host;
use rancher_desktop_agent::host::handshake::{TimedRead, read_magic, read_ok};
use rancher_desktop_agent::host::policy::{ALLOW_DEFAULT, AllowRule, Policy, parse_cidr};
use rancher_desktop_agent::logging::fields;
use rancher_desktop_agent::parse::containerd::{Container, Record, TaskEvent};
use rancher_desktop_agent::parse::docker::{ApiVersion, DockerEvent};
use rancher_desktop_agent::parse::nat::View;
use rancher_desktop_agent::parse::published::Published;
use rancher_desktop_agent::parse::sockets::Listening;
use rancher_desktop_agent::parse::{self, iptables, netlink, nftables, route};
use rancher_desktop_agent::policy::{RULES_MAX, Rule, parse_rules};
#[cfg(feature = "kubernetes")]
use rancher_desktop_agent::port::Bindings;
use rancher_desktop_agent::port::{Binding, Protocol};
use rancher_desktop_agent::source::lines::{Lines, Next};
use rancher_desktop_agent::source::nat::names::names_nat;
use rancher_desktop_agent::wire::port_mapping::{DOCUMENT_BYTES_MAX, encode};
use rancher_desktop_agent::wire::port_mapping_decode as decoder;
use rancher_desktop_agent::wire::vtunnel::MAGIC;
use rancher_desktop_agent::wire::{expose as api, session};
use serde_json::{Map, Value, json};

/// A target's function.
pub type Target = fn(&[u8]);

/// Every target. Each has a corpus and a program of its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("containerd", containerd),
    ("control_request", control_request),
    ("docker", docker),
    ("documents", documents),
    ("expose", expose),
    ("flags", flags),
    #[cfg(feature = "kubernetes")]
    ("kube", kube),
    #[cfg(feature = "kubernetes")]
    ("kubeconfig", kubeconfig),
    ("lines", lines),
    ("log", log),
    ("nat", nat),
    ("port_mapping", port_mapping),
    ("rules", rules),
    ("sockets", sockets),
    ("state_file", state_file),
    ("vtunnel", vtunnel),
];

/// The longest error, complaint or warning, in bytes: 200 characters of the input, each escaped, and the words around them.
const TEXT_BYTES_MAX: usize = 2560;

/// The longest that an error about a kubeconfig may be: it lists names.
#[cfg(feature = "kubernetes")]
const KUBECONFIG_ERROR_BYTES_MAX: usize = 8192;

/// Complaints about single ports of one record.
const COMPLAINTS_MAX: usize = 8;

/// Asserts that this is one line for people, with nothing in it that a terminal would act on.
fn one_line(text: &str, bytes_max: usize) {
    assert!(!text.is_empty(), "nothing is said");
    assert!(text.len() <= bytes_max, "{} bytes are said: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// Reads twice, which has to come to the same; `None` for an error, which has to be fit for people.
fn read<T: PartialEq + Debug, E: Display>(parse: impl Fn() -> Result<T, E>) -> Option<T> {
    read_with(TEXT_BYTES_MAX, parse)
}

fn read_with<T: PartialEq + Debug, E: Display>(bytes_max: usize, parse: impl Fn() -> Result<T, E>) -> Option<T> {
    match (parse(), parse()) {
        (Ok(once), Ok(twice)) => {
            assert_eq!(once, twice);
            Some(once)
        }
        (Err(once), Err(twice)) => {
            let text = once.to_string();
            assert_eq!(text, twice.to_string());
            one_line(&text, bytes_max);
            None
        }
        _ => panic!("taken once, and refused once"),
    }
}

/// Reads what has an end that shows: without its last byte it is an error.
fn whole<T: PartialEq + Debug, E: Display>(bytes: &[u8], parse: impl Fn(&[u8]) -> Result<T, E>) -> Option<T> {
    let value = read(|| parse(bytes))?;
    if let Some((_, cut)) = bytes.trim_ascii_end().split_last() {
        assert!(parse(cut).is_err(), "cut short, it was taken");
    }
    Some(value)
}

/// Whether the engine's text for an address means this one.
fn means(text: &str, ip: IpAddr) -> bool {
    if text.is_empty() {
        ip.is_unspecified()
    } else {
        text.parse::<IpAddr>().is_ok_and(|read| read.to_canonical() == ip)
    }
}

fn check_published(published: &Published) {
    assert!(published.skipped.len() <= COMPLAINTS_MAX);
    published.skipped.iter().for_each(|complaint| one_line(complaint, TEXT_BYTES_MAX));
    published.name.iter().for_each(|name| check_name(name));
}

fn check_name(name: &str) {
    assert!((1..=128).contains(&name.chars().count()), "{name:?}");
}

/// The Docker Engine API: `/version`, a line of `/events`, `/containers/json`, `/containers/ID/json`.
pub fn docker(bytes: &[u8]) {
    use parse::docker::{containers, event, inspect, is_podman, versions};
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let check_id = |id: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        assert!((1..=128).contains(&id.len()) && id.bytes().all(plain), "{id:?} goes into a request's path");
    };
    if let Some((newest, oldest)) = whole(bytes, versions) {
        let again = |version: ApiVersion| assert_eq!(ApiVersion::parse(&version.to_string()), Some(version));
        again(newest);
        oldest.into_iter().for_each(again);
    }
    assert!(!is_podman(bytes) || value.is_object());
    if let Some(event) = whole(bytes, event).flatten() {
        let actor = &value["Actor"];
        let (DockerEvent::Started(id) | DockerEvent::Ended(id) | DockerEvent::NetworkChanged(id)) = &event else {
            let DockerEvent::Renamed(id, name) = event else { return };
            assert_eq!(actor["ID"], *id);
            return check_name(&name);
        };
        check_id(id);
        assert!(actor["ID"] == **id || actor["Attributes"]["container"] == **id);
    }
    if let Some(running) = whole(bytes, containers) {
        assert!(running.skipped.len() <= COMPLAINTS_MAX);
        running.skipped.iter().for_each(|complaint| one_line(complaint, TEXT_BYTES_MAX));
        for (id, name) in &running.names {
            assert!(running.claims.contains_key(id));
            check_name(name);
        }
        for (id, bindings) in &running.claims {
            check_id(id);
            // Of one that is there twice, the last counts.
            let record = value.as_array().unwrap().iter().rfind(|container| container["Id"] == **id).unwrap();
            let ports = record["Ports"].as_array().map_or(&[][..], Vec::as_slice);
            for (binding, inside) in bindings {
                let says = |port: &Value| {
                    port["PublicPort"] == binding.host_port.get()
                        && port["PrivatePort"] == inside.get()
                        && port["Type"] == *binding.protocol.as_str()
                        && means(port["IP"].as_str().unwrap_or_default(), binding.host_ip)
                };
                assert!(ports.iter().any(says), "{binding} was not published");
            }
        }
    }
    if let Some(published) = whole(bytes, inspect) {
        check_published(&published);
        let running = value["State"]["Running"].as_bool().unwrap();
        assert!(running || published == Published::default());
        let ports = value["NetworkSettings"]["Ports"].as_object();
        for (binding, inside) in &published.bindings {
            let number = |text: &str| text.parse::<u64>().unwrap_or_default();
            let of_port = |key: &str| {
                let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
                number(port) == u64::from(inside.get()) && protocol == binding.protocol.as_str()
            };
            let says = |host: &Value| {
                number(host["HostPort"].as_str().unwrap_or_default()) == u64::from(binding.host_port.get())
                    && means(host["HostIp"].as_str().unwrap_or_default(), binding.host_ip)
            };
            let hosts = ports.unwrap().iter().filter(|(key, _)| of_port(key)).filter_map(|(_, hosts)| hosts.as_array());
            assert!(hosts.flatten().any(says), "{binding} was not published");
        }
    }
}

/// containerd's `ctr`: a line of `events`; `namespaces ls`, `tasks ls`, `containers ls`, `containers info`; nerdctl's label and
/// `network-config.json`.
pub fn containerd(bytes: &[u8]) {
    use parse::containerd::{containers, event, event as event_of, info, namespaces, network_config, tasks};
    let check = |container: &Container| {
        for part in [container.namespace(), container.id()] {
            assert!(part.len() <= 76 && part.starts_with(|c: char| c.is_ascii_alphanumeric()), "{container}");
            assert!(part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{container}");
        }
        assert_eq!(Container::new(container.namespace(), container.id()).as_ref(), Some(container));
    };
    // Of topics that mean nothing here, the JSON is not read.
    if let Some(event) = read(|| event(bytes)).flatten() {
        assert!(event_of(&bytes[..bytes.trim_ascii_end().len() - 1]).is_err(), "cut short, it was taken");
        let (TaskEvent::Started(container, _) | TaskEvent::Ended(container, _) | TaskEvent::Updated(container)) = event;
        check(&container);
        assert!(!["moby", "buildkit"].contains(&container.namespace()));
    }
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
    let cut = bytes.strip_suffix(b"\n").filter(|cut| !cut.is_empty() && !cut.ends_with(b"\n"));
    if let Some(list) = read(|| namespaces(bytes)) {
        assert!(list.items.len() <= 1024 && list.items.len() + list.skipped <= lines);
        assert!(list.items.iter().all(|name| !["moby", "buildkit"].contains(&&**name)));
        list.items.iter().for_each(|name| check(&Container::new(name, "c").unwrap()));
        assert!(cut.is_none_or(|cut| namespaces(cut).is_err()), "cut short, it was taken");
    }
    if let Some(list) = read(|| tasks("default", bytes)) {
        assert!(list.items.len() + list.skipped < lines);
        list.items.iter().for_each(|(container, _)| check(container));
        assert!(cut.is_none_or(|cut| tasks("default", cut).is_err()), "cut short, it was taken");
    }
    if let Some(list) = read(|| containers("default", bytes)) {
        assert_eq!(list.items.len() + list.skipped, lines);
        assert!(list.items.is_sorted());
        list.items.iter().for_each(check);
        assert!(cut.is_none_or(|cut| containers("default", cut).is_err()), "cut short, it was taken");
    }
    let check_ports = |published: &Published, ports: &Value| {
        check_published(published);
        for (binding, inside) in &published.bindings {
            let says = |entry: &Value| {
                entry["HostPort"] == binding.host_port.get()
                    && entry["ContainerPort"] == inside.get()
                    && entry["Protocol"].as_str().is_some_and(|p| p.eq_ignore_ascii_case(binding.protocol.as_str()))
                    && means(entry["HostIP"].as_str().unwrap_or_default(), binding.host_ip)
            };
            assert!(ports.as_array().unwrap().iter().any(says), "{binding} was not published");
        }
    };
    let value = || serde_json::from_slice::<Value>(bytes).unwrap();
    match whole(bytes, info) {
        Some(Record::Ports(published)) => {
            let value = value();
            let label = value["Labels"]["nerdctl/ports"].as_str().unwrap();
            check_ports(&published, &serde_json::from_str(label).unwrap());
        }
        Some(Record::StateDir(dir, name)) => {
            assert!(dir.is_absolute() && dir.file_name().is_some() && dir.as_os_str().len() <= 4095, "{dir:?}");
            assert!(!dir.to_str().unwrap().split('/').any(|part| [".", ".."].contains(&part)), "{dir:?}");
            name.iter().for_each(|name| check_name(name));
        }
        Some(Record::None) | None => {}
    }
    if let Some(published) = whole(bytes, network_config) {
        check_ports(&published, &value()["portMappings"]);
    }
}

/// NAT rules: `iptables-save`, `nft -j`, the kernel's messages about nftables and links, `/proc/net/ip_tables_names`.
pub fn nat(bytes: &[u8]) {
    if let Some(view) = read_view(|| iptables::save(bytes)) {
        check_view(&view);
        if let Some(cut) = bytes.trim_ascii_end().strip_suffix(b"\nCOMMIT") {
            let cut = [cut, b"\nCOMMI"].concat();
            assert!(iptables::save(&cut).is_err(), "cut short, it was taken");
        }
    }
    if let Some(view) = read_view(|| nftables::table(bytes)) {
        check_view(&view);
        let cut = bytes.trim_ascii_end();
        assert!(nftables::table(&cut[..cut.len() - 1]).is_err(), "cut short, it was taken");
    }
    let families = ["ip", "ip6"].map(|family| whole(bytes, |bytes| nftables::has_table(bytes, family)));
    assert_eq!(families[0].is_some(), families[1].is_some());
    let tables = |bytes: &[u8]| {
        let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
        netlink::tables(bytes, |family, name| found.push((family, name.to_vec()))).map(|()| found)
    };
    if let Some(found) = read(|| tables(bytes)) {
        assert!(found.len() <= bytes.len() / 20);
        if bytes.len() % 4 == 0 {
            // Messages are padded: two datagrams' are those of one and those of the other.
            assert_eq!(tables(&bytes.repeat(2)).unwrap(), [&found[..], &found[..]].concat());
        }
    }
    let refusal = read(|| netlink::is_refusal(bytes));
    let lost = read(|| netlink::link_lost(bytes));
    assert!(!bytes.is_empty() || (refusal, lost) == (Some(false), Some(false)));
    assert!(!names_nat(bytes) || bytes.windows(3).any(|part| part == b"nat"));
}

/// Reads as [`read`] does, but for views of thousands of ports: making those takes as long as all else together.
fn read_view(parse: impl Fn() -> Result<View, parse::ParseError>) -> Option<View> {
    let view = parse();
    let bindings = |view: &View| view.targets.values().map(|target| target.bindings.len()).sum::<usize>();
    if view.as_ref().is_ok_and(|view| bindings(view) > 512) {
        assert!(view.is_ok_and(|view| bindings(&view) <= parse::nat::BINDINGS_MAX));
        return None;
    }
    read(parse)
}

fn check_view(view: &View) {
    assert!(view.skipped.len() <= 64);
    view.skipped.iter().for_each(|complaint| one_line(complaint, TEXT_BYTES_MAX));
    for (key, target) in &view.targets {
        let (name, address) = key.rsplit_once(' ').unwrap();
        assert!(name.len() <= 107 && name.bytes().all(|b| b.is_ascii_graphic()), "{key:?}");
        assert_eq!(address, target.address.to_string());
        assert!(!target.bindings.is_empty());
        assert!(target.bindings.keys().all(|b| b.host_ip.is_ipv4() == target.address.is_ipv4()), "{target:?}");
    }
    let mut merged = view.clone();
    merged.merge(view);
    assert_eq!(&merged, view);
    if let Some(target) = view.targets.values().find(|target| target.bindings.len() <= 16) {
        let rule = |(binding, inside): (&Binding, &std::num::NonZeroU16)| {
            let Binding { protocol, host_ip, host_port } = binding;
            let to = SocketAddr::new(target.address, inside.get());
            let only = if host_ip.is_unspecified() { String::new() } else { format!("-d {host_ip} ") };
            format!("-A CNI-DN-x {only}-p {protocol} -m {protocol} --dport {host_port} -j DNAT --to-destination {to}\n")
        };
        let text = format!("*nat\n{}COMMIT\n", target.bindings.iter().map(rule).collect::<String>());
        let again = iptables::save(text.as_bytes()).unwrap();
        assert_eq!(again.targets.values().collect::<Vec<_>>(), [target], "{text}");
        assert!(again.skipped.is_empty(), "{:?}", again.skipped);
    }
}

/// What listens: answers of SOCK_DIAG, lines of `/proc/net/tcp` and its like, of `/proc/net/route`, links below `/proc/PID/fd`.
pub fn sockets(bytes: &[u8]) {
    use parse::sockets::{answer, inode, is_title, line};
    let check = |socket: &Listening, protocol: Protocol| {
        assert_eq!(socket.protocol, protocol);
        assert_eq!(socket.ip, socket.ip.to_canonical());
        assert!(socket.ip.is_ipv6() || socket.v6only.is_none());
        assert!(!socket.is_dual_stack() || socket.ip == Ipv6Addr::UNSPECIFIED);
    };
    let sequence = bytes.get(8..12).map_or(0, |field| u32::from_ne_bytes(field.try_into().unwrap()));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let answer = |bytes: &[u8]| {
            let mut found = Vec::new();
            answer(bytes, protocol, sequence, |socket| found.push(socket)).map(|end| (found, end))
        };
        if let Some((found, end)) = read(|| answer(bytes)) {
            assert!(found.len() <= bytes.len() / 88);
            found.iter().for_each(|socket| check(socket, protocol));
            if end.is_none() && bytes.len() % 4 == 0 {
                assert_eq!(answer(&bytes.repeat(2)).unwrap(), (found.repeat(2), None));
            }
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for text in text.lines() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if let Some(socket) = read(|| line(text, protocol)).flatten() {
                check(&socket, protocol);
                assert_eq!(line(&proc_net(&socket), protocol).unwrap(), Some(socket));
                assert!(!is_title(text) || text.split_ascii_whitespace().next() == Some("sl"));
            }
        }
        if let Some(number) = inode(text) {
            assert_eq!(inode(&format!("socket:[{number}]")), Some(number));
        }
    }
    let v4 = route::default_gateways_v4(text, "eth0");
    let v6 = route::default_gateways_v6(text, "eth0");
    assert!(v4.iter().all(IpAddr::is_ipv4) && v6.iter().all(IpAddr::is_ipv6));
    assert!(v4.len() + v6.len() <= text.lines().filter(|line| line.contains("eth0")).count());
}

/// A socket that listens as `/proc/net` has it.
fn proc_net(socket: &Listening) -> String {
    let words = match socket.ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |bytes: &[u8]| format!("{:08X}", u32::from_ne_bytes(bytes.try_into().unwrap()));
    let ip: String = words.chunks(4).map(word).collect();
    let state = if socket.protocol == Protocol::Tcp { "0A" } else { "07" };
    let (port, uid, inode) = (socket.port, socket.uid, socket.inode);
    format!("0: {ip}:{port:04X} 0:0 {state} 0:0 0:0 0 {uid} 0 {inode} 1 0 0")
}

/// The Kubernetes API: `/api/v1/services`, a line of a watch, `Status`.
#[cfg(feature = "kubernetes")]
pub fn kube(bytes: &[u8]) {
    use parse::kube::{WatchEvent, services, status, watch_event};
    const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
    let check = |key: &str, bindings: &Bindings, services: &[&Value]| {
        let (namespace, name) = key.split_once('/').unwrap();
        for (binding, inside) in bindings {
            assert!([IpAddr::V4(LOCAL), Ipv6Addr::LOCALHOST.into()].contains(&binding.host_ip), "{binding}");
            let says = |port: &Value| {
                let ports = [&port["port"], &port["nodePort"]];
                ports.iter().any(|port| **port == binding.host_port.get()) && port["port"] == inside.get()
            };
            let named = |service: &&&Value| {
                service["metadata"]["namespace"] == *namespace && service["metadata"]["name"] == *name
            };
            let mut ports = services.iter().filter(named).filter_map(|service| service["spec"]["ports"].as_array());
            assert!(ports.any(|ports| ports.iter().any(says)), "{key} does not publish {binding}");
        }
    };
    let check_version = |version: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
        assert!((1..=128).contains(&version.len()) && version.bytes().all(plain), "{version:?} goes into a URL");
    };
    let value = serde_json::from_slice::<Value>(bytes);
    if let Some(list) = whole(bytes, |bytes| services(bytes, LOCAL)) {
        check_version(&list.resource_version);
        assert!(list.skipped.len() <= COMPLAINTS_MAX + 1);
        list.skipped.iter().for_each(|complaint| one_line(complaint, TEXT_BYTES_MAX));
        for size in [1, 7] {
            assert_eq!(services(Slowly(bytes, size), LOCAL).unwrap(), list, "{size} bytes at a time");
        }
        let everywhere = services(bytes, Ipv4Addr::UNSPECIFIED).unwrap();
        assert!(list.claims.keys().eq(everywhere.claims.keys()));
        // What is skipped may be nested deeper than this reads.
        if let Ok(value) = &value {
            let items: Vec<&Value> = value["items"].as_array().into_iter().flatten().collect();
            list.claims.iter().for_each(|(key, bindings)| check(key, bindings, &items));
        }
    }
    match whole(bytes, |bytes| watch_event(bytes, LOCAL)) {
        Some(WatchEvent::Published { key, published, resource_version }) => {
            check_version(&resource_version);
            check_published(&published);
            if let Ok(value) = &value {
                check(&key, &published.bindings, &[&value["object"]]);
            }
        }
        Some(WatchEvent::Gone { resource_version, .. } | WatchEvent::Bookmark { resource_version }) => {
            check_version(&resource_version);
        }
        Some(WatchEvent::Error(status)) => assert!(!status.message.chars().any(char::is_control)),
        None => {}
    }
    let status = status(bytes);
    assert!(status.message.len() <= TEXT_BYTES_MAX && !status.message.chars().any(char::is_control), "{status:?}");
}

/// Input in pieces of so many bytes.
#[cfg(feature = "kubernetes")]
struct Slowly<'a>(&'a [u8], usize);

#[cfg(feature = "kubernetes")]
impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.1.min(buffer.len());
        (&mut self.0).take(size as u64).read(buffer)
    }
}

/// kubeconfig files: YAML, what it says, base64 and PEM of credentials, and what TLS makes of them.
#[cfg(feature = "kubernetes")]
pub fn kubeconfig(bytes: &[u8]) {
    use parse::kubeconfig::{Blob, Place, parse, token};
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(config) = read_with(KUBECONFIG_ERROR_BYTES_MAX, || parse(text)) else { return };
    let host = config.server.strip_prefix("https://").unwrap();
    assert!(host.bytes().all(|b| b.is_ascii_graphic()) && !host.contains(['?', '#']) && !host.ends_with('/'), "{host}");
    assert!(!host.split('/').next().unwrap().contains('@'), "{host}");
    assert!(!config.server_name.is_empty() && config.server_name.len() <= 253 && config.server_name.is_ascii());
    assert_ne!(config.insecure_skip_tls_verify, config.certificate_authority.is_some());
    assert_eq!(config.client_certificate.is_some(), config.client_key.is_some());
    let inline = |blob: &Blob| match &blob.place {
        Place::Inline(bytes) => Some(bytes.clone()),
        Place::File(path) => {
            assert!(!path.as_os_str().is_empty() && path.as_os_str().len() <= 4096);
            None
        }
    };
    if let Some(bytes) = config.token.as_ref().and_then(inline) {
        assert!(!bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic), "a token goes into a header");
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(token(&text), Ok(&*text));
    }
    let blobs = [&config.certificate_authority, &config.client_certificate, &config.client_key];
    let mut blobs = blobs.into_iter().flatten();
    // No other file is read here.
    if blobs.all(|blob| inline(blob).is_some_and(|bytes| bytes.windows(10).any(|part| part == b"-----BEGIN"))) {
        let tls = || rancher_desktop_agent::source::kubernetes::tls_config(Path::new("k"), &config).map(drop);
        let _ = read_with(KUBECONFIG_ERROR_BYTES_MAX, tls);
    }
}

/// What a guest sends to the host end: a document in pieces, its decoding, and whether the default rules let it open anything
/// that they should not.
pub fn port_mapping(bytes: &[u8]) {
    let expect = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    for size in [1, 5, bytes.len().max(1)] {
        let mut document = Vec::new();
        let mut pieces = bytes.chunks(size).map(|piece| host::documents::append(&mut document, piece).unwrap());
        assert_eq!(pieces.any(|complete| complete), bytes.contains(&b'\n'));
        assert_eq!(document, expect);
    }
    let Some(request) = whole(expect, decoder::decode) else { return };
    assert!(request.refused.len() == request.refused_count.min(decoder::REFUSED_SHOWN_MAX));
    request.refused.iter().for_each(|reason| one_line(reason, TEXT_BYTES_MAX));
    assert!(request.ports.len() <= decoder::DOCUMENT_ENTRIES_MAX);
    assert!(request.connect.as_ref().is_none_or(|connect| connect.len() <= decoder::CONNECT_ADDRS_MAX));
    let addresses = request.ports.keys().map(|binding| binding.host_ip);
    let connect = request.connect.as_deref().unwrap_or_default();
    for ip in addresses.chain(connect.iter().map(|addr| addr.ip)) {
        assert_eq!(ip, ip.to_canonical(), "a second spelling of an IPv4 address");
    }
    let text = encode(request.operation, &request.ports, request.connect.as_deref());
    if text.len() <= DOCUMENT_BYTES_MAX {
        let expect = decoder::Request { refused: Vec::new(), refused_count: 0, ..request.clone() };
        assert_eq!(decoder::decode(&text), Ok(expect), "{}", text.escape_ascii());
    }
    let policy = Policy { allow: ALLOW_DEFAULT.map(|rule| rule.parse().unwrap()).into(), ..Policy::default() };
    for binding in request.ports.keys() {
        match policy.target(binding, connect, |ip| ip == Ipv4Addr::new(192, 168, 1, 9)) {
            Ok(target) => {
                let ip = target.ip();
                assert!(binding.is_loopback() && binding.host_port.get() >= 1024, "{binding}");
                assert_eq!((ip.is_ipv4(), target.port()), (binding.host_ip.is_ipv4(), binding.host_port.get()));
                assert!(!ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast(), "{binding} to {ip}");
                assert!(ip != Ipv4Addr::new(192, 168, 1, 9) && connect.iter().any(|addr| addr.ip == ip));
            }
            Err(refusal) => one_line(&refusal.to_string(), TEXT_BYTES_MAX),
        }
    }
}

/// A line to the control socket.
pub fn control_request(bytes: &[u8]) {
    let parsed = request::parse(bytes);
    if let Err(error) = &parsed {
        assert!(["request", "schema"].contains(&error.code));
    }
    let Some(request) = whole(bytes, |bytes| request::parse(bytes).map_err(|error| error.message)) else { return };
    assert_eq!(request::parse(&encode_request(&request)).as_ref(), Ok(&request));
    assert!(request.op != Op::Explain || request.filter.port.is_some());
    let takes_filters = !matches!(request.op, Op::Status | Op::Reset);
    assert!(takes_filters || request.filter == Filter::default());
}

/// A request as a client would write it.
fn encode_request(request: &Request) -> Vec<u8> {
    let (op, replay) = match request.op {
        Op::Status => ("status", None),
        Op::Ports => ("ports", None),
        Op::Watch { replay } => ("watch", Some(replay)),
        Op::Explain => ("explain", None),
        Op::Reset => ("reset", None),
    };
    let Filter { port, protocol, source, sink, state, host_ip } = &request.filter;
    let mut fields = Map::new();
    fields.insert("op".into(), op.into());
    let optional: [(&str, Option<Value>); 7] = [
        ("replay", replay.map(Value::from)),
        ("port", port.map(|port| port.get().into())),
        ("protocol", protocol.map(|protocol| protocol.as_str().into())),
        ("source", source.map(|source| source.as_str().into())),
        ("sink", sink.as_deref().map(Value::from)),
        ("state", state.map(|state| state.as_str().into())),
        ("host_ip", host_ip.map(|ip| json!(ip.to_string()))),
    ];
    fields.extend(optional.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
    Value::Object(fields).to_string().into_bytes()
}

/// The state file of host-switch's sink.
pub fn state_file(bytes: &[u8]) {
    let Some(state) = whole(bytes, api::decode_state) else { return };
    assert!(state.forwards.iter().all(|binding| binding.host_ip.is_ipv4()));
    let remote: Ipv4Addr = state.remote.parse().unwrap_or(Ipv4Addr::LOCALHOST);
    let text = api::encode_state(&state.api, remote, &state.forwards);
    let expect = api::State { remote: remote.to_string(), ..state };
    assert_eq!(api::decode_state(text.as_bytes()).unwrap(), expect, "{text}");
}

/// What a server of the expose API says that it has, and the bodies of our requests.
pub fn expose(bytes: &[u8]) {
    let Some((exposed, skipped)) = whole(bytes, api::list) else { return };
    assert!(exposed.len() <= api::ENTRIES_MAX);
    assert!(exposed.len() + skipped <= bytes.iter().filter(|byte| **byte == b',').count() + 1);
    let value: Option<Value> = serde_json::from_slice(bytes).ok();
    for (binding, remote) in exposed.iter().take(64) {
        let list = |body: String| api::list(format!("[{body}]").as_bytes()).unwrap();
        let to = remote.map_or(Ipv4Addr::new(192, 168, 127, 2), |remote| *remote.ip());
        let expect = [(*binding, Some(SocketAddrV4::new(to, binding.host_port.get())))];
        assert_eq!(list(api::expose(*binding, to)), (expect.into_iter().collect(), 0));
        assert_eq!(list(api::unexpose(*binding)), ([(*binding, None)].into_iter().collect(), 0));
        let says = |entry: &&Value| {
            entry["protocol"] == *binding.protocol.as_str()
                && entry["local"].as_str().and_then(|local| local.parse().ok()) == Some(binding.socket_addr())
        };
        if let Some(value) = &value {
            // Of one that is there twice, the last counts.
            let entry = value.as_array().unwrap().iter().rfind(says).unwrap();
            assert_eq!(entry["remote"].as_str().and_then(|remote| remote.parse().ok()), *remote);
        }
    }
}

/// The rules file, single rules of either program, and ranges of addresses.
pub fn rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(rules) = read(|| parse_rules(text)) {
        assert!(rules.len() <= RULES_MAX && rules.len() <= text.lines().count());
        assert!(rules.iter().all(|rule| rule.line.is_some_and(|line| line > 0) && !rule.built_in));
        let again: Vec<Rule> =
            parse_rules(&rules.iter().map(|rule| format!("{rule:#}\n")).collect::<String>()).unwrap();
        let unnumbered = |rules: &[Rule]| rules.iter().map(|rule| Rule { line: None, ..*rule }).collect::<Vec<_>>();
        assert_eq!(unnumbered(&again), unnumbered(&rules));
    }
    for text in text.lines().take(64) {
        check_rule(text);
        if let Some(cidr) = read(|| parse_cidr(text)) {
            assert!(cidr.contains(cidr.ip()));
            assert_eq!(parse_cidr(&cidr.to_string()), Ok(cidr));
        }
        if let Some(rule) = read(|| text.parse::<AllowRule>()) {
            let port = |number| std::num::NonZeroU16::new(number).unwrap();
            let binding = |host_ip, host_port| Binding { protocol: Protocol::Tcp, host_ip, host_port: port(host_port) };
            let wide = text.contains("/0:") || text.contains("/0]:");
            for ip in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
                let covers = rule.covers(&binding(ip, 1)) || rule.covers(&binding(ip, 65_535));
                assert!(
                    !covers || wide || text.contains("0.0.0.0") || text.contains("::") || text.contains("[0"),
                    "{text}"
                );
            }
        }
    }
}

fn check_rule(text: &str) {
    for allow in [true, false] {
        if let Some(rule) = Rule::parse(text, allow) {
            let (first, last) = rule.ports;
            assert!(0 < first && first <= last && rule.line.is_none() && !rule.built_in);
            let shown = rule.to_string();
            let again = shown.strip_prefix(if allow { "--allow " } else { "--deny " }).unwrap();
            assert_eq!(Rule::parse(again, allow), Some(rule), "{text}");
        }
    }
}

/// Command lines of both programs and of the commands: a word a line. A first line `DOCKER_HOST=…` is the environment.
pub fn flags(bytes: &[u8]) {
    let mut words: Vec<OsString> = bytes.split(|b| *b == b'\n').map(|word| OsString::from_vec(word.to_vec())).collect();
    let docker_host = bytes.strip_prefix(b"DOCKER_HOST=").map(|_| {
        let first = words.remove(0).into_vec();
        OsString::from_vec(first.split_at(b"DOCKER_HOST=".len()).1.to_vec())
    });
    let environment = |name: &str| docker_host.clone().filter(|_| name == "DOCKER_HOST");
    if let Some(Wish::Run(config) | Wish::Check(config)) = read(|| config::read(words.iter().cloned(), environment)) {
        assert!(!config.sinks.is_empty());
        let (day, least) = (Duration::from_secs(86_400), Duration::from_millis(10));
        let intervals = [config.nat_interval, config.socket_interval];
        assert!(intervals.iter().flatten().all(|interval| (least..=day).contains(interval)));
        assert!(config.grace <= day && (1..=15).contains(&config.interface.len()));
        let given = config.policy.rules.iter().filter(|rule| !rule.built_in);
        given.for_each(|rule| check_rule(rule.to_string().split_once(' ').unwrap().1));
        assert!(config.docker.iter().chain(&config.control_socket).chain(&config.rules_file).all(|p| p.is_absolute()));
    }
    let _ = read(|| host::config::parse(words.iter().cloned()).map(|action| format!("{action:?}")));
    if let Ok(host::config::Action::Run(config)) = host::config::parse(words.iter().cloned()) {
        assert!(
            !config.listen.is_empty() && (1..=65_535).contains(&config.ports_max) && !config.policy.allow.is_empty()
        );
        for listen in &config.listen {
            let words = ["--listen".to_owned(), listen.to_string()].map(OsString::from);
            let again = host::config::parse(words);
            assert!(
                matches!(again, Ok(host::config::Action::Run(again)) if again.listen == [listen.clone()]),
                "{listen}"
            );
        }
    }
    for command in &config::commands::COMMANDS {
        let parsed = || command.usage.parse(words.iter().cloned()).map(|parsed| format!("{parsed:?}"));
        let _ = read(parsed);
    }
}

/// Lines of a stream, as events come in, whatever pieces it comes in.
pub fn lines(bytes: &[u8]) {
    const LIMIT: usize = 32;
    let mut segments: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let rest = segments.pop().unwrap_or_default();
    for size in [1, 3, 100, bytes.len().clamp(1, 8192)] {
        let mut pieces = bytes.chunks(size);
        let mut lines = Lines::with_limit(Pieces(&mut pieces), LIMIT);
        let mut seen = Vec::new();
        while let next @ (Next::Line(_) | Next::TooLong) = lines.next_line().unwrap() {
            assert!(!matches!(&next, Next::Line(line) if line.len() > LIMIT + size));
            seen.push(next);
        }
        let kept: Vec<&[u8]> =
            seen.iter().filter_map(|next| if let Next::Line(line) = next { Some(&**line) } else { None }).collect();
        let short = |line: &&[u8]| line.len() <= LIMIT;
        assert!(
            kept.iter().copied().filter(short).eq(segments.iter().copied().filter(short)),
            "{size} bytes at a time"
        );
        if size == 1 {
            let too_long = segments.iter().chain([&rest]).filter(|line| line.len() > LIMIT).count();
            assert_eq!(seen.len() - kept.len(), too_long);
            assert!(kept.iter().all(short));
        }
    }
}

/// Each read brings one of them.
struct Pieces<'a, 'b>(&'a mut std::slice::Chunks<'b, u8>);

impl Read for Pieces<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.0.next().unwrap_or_default();
        // None is longer than what is asked for.
        buffer[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

/// What is logged, taken apart for `--log-format json`.
pub fn log(bytes: &[u8]) {
    let message = String::from_utf8_lossy(bytes);
    let (words, pairs) = fields::split(&message);
    assert!(message.starts_with(words));
    for (i, (key, _)) in pairs.iter().enumerate() {
        assert!(
            !["time", "level", "message"].contains(key) && !pairs[..i].iter().any(|(other, _)| other == key),
            "{key}"
        );
        assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{key}");
    }
    let again: String = pairs.iter().map(|(key, value)| format!(" {key}={value:?}")).collect();
    let again = format!("{words}{again}");
    assert_eq!(fields::split(&again), (words, pairs));
}

/// Documents of the agent as its commands print them.
pub fn documents(bytes: &[u8]) {
    let hidden =
        |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}');
    let harmless = |text: &str| assert!(!text.chars().any(hidden), "{text:?}");
    let text = String::from_utf8_lossy(bytes);
    harmless(&shown::plain(&text));
    harmless(&shown::clock(&text));
    let now = std::time::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
    harmless(&shown::age(&text, now));
    for line in text.lines() {
        let Ok(document) = serde_json::from_str::<Value>(line) else { continue };
        // As the agent writes it, without white space.
        let line = document.to_string();
        let plain = shown::plain_json(&line);
        harmless(&plain);
        let read = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        assert_eq!(read(&plain), read(&line));
        harmless(&shown::owner(&document));
        harmless(&shown::key(&document));
        harmless(&shown::endpoint(&document, "published_ip"));
        harmless(&shown::port(&document));
        harmless(&shown::sink(&document));
    }
}

/// What the other end of a vsock says: the hypervisor and the agent to the host, the host end's session to the agent.
pub fn vtunnel(bytes: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let ok = read(|| read_ok(&mut Answer(bytes), deadline)).is_some();
    let first = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let number = first.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n")).unwrap_or_default();
    assert_eq!(ok, first.len() <= 32 && !number.is_empty() && number.iter().all(u8::is_ascii_digit));
    let magic = read(|| read_magic(&mut Answer(bytes), deadline)).is_some();
    assert_eq!(magic, bytes.starts_with(MAGIC));
    if let Some(name) = session::decode(bytes) {
        assert!((1..=64).contains(&name.len()));
        assert_eq!(session::decode(&session::encode(&name)), Some(name));
    }
}

/// An answer that ends.
struct Answer<'a>(&'a [u8]);

impl Read for Answer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl TimedRead for Answer<'_> {
    fn set_timeout(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}
