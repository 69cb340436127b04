//! What there is, by the engines' own word and by the processes that run, next to what the agent and both receivers have.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::{self, LISTENS};
use crate::random::Random;
use crate::support::vm::HOST;
use crate::world::{Address, World, lock};

/// How long everybody has to agree once nothing happens any more.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Forwards, as `tcp 127.0.0.1:8080`.
type Set = BTreeSet<String>;

/// What everybody agreed on.
pub struct Agreed {
    /// Containers and plain processes that publish something.
    pub publishers: usize,
    /// Forwards at hostagent and at host-switch.
    pub forwards: (usize, usize),
    /// How long it took them.
    pub after: Duration,
}

/// Waits until all agree. The differences, by name, where they do not in time.
pub fn settle(world: &World) -> Result<Agreed, Vec<String>> {
    settle_on(|| compare(world))
}

/// The same, and that there is nothing. What dockerds have left is ended first; how many processes that were.
pub fn settle_empty(world: &World) -> Result<usize, Vec<String>> {
    let mut lost = 0;
    settle_on(|| {
        lost += world.end_lost();
        match compare(world)? {
            (0, (0, 0)) => Ok((0, (0, 0))),
            (publishers, forwards) => Err(vec![format!("{publishers} publishers and {forwards:?} forwards are left")]),
        }
    })?;
    Ok(lost)
}

type Compared = Result<(usize, (usize, usize)), Vec<String>>;

fn settle_on(mut compare: impl FnMut() -> Compared) -> Result<Agreed, Vec<String>> {
    let begun = Instant::now();
    loop {
        match compare() {
            Ok((publishers, forwards)) => return Ok(Agreed { publishers, forwards, after: begun.elapsed() }),
            Err(differences) if begun.elapsed() >= DEADLINE => return Err(differences),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn compare(world: &World) -> Compared {
    let mut wrong = Vec::new();
    let published = published(world).map_err(|error| vec![error])?;
    let rules: Vec<Address> = lock(&world.attached).values().cloned().collect();
    let wanted: Set = published.iter().flatten().chain(&rules).chain(&listening(world)).filter_map(on_host).collect();
    let ipv4: Set = wanted.iter().filter(|forward| !forward.contains('[')).cloned().collect();
    let mut expect = |who: &str, wanted: &Set, held: Result<Set, String>| match held {
        Ok(held) => {
            wrong.extend(wanted.difference(&held).map(|forward| format!("{who}: missing {forward}")));
            wrong.extend(held.difference(wanted).map(|forward| format!("{who}: too much {forward}")));
        }
        Err(error) => wrong.push(format!("{who}: {error}")),
    };
    expect("hostagent's sockets", &wanted, Ok(at_hostagent(world)));
    expect("host-switch's list", &ipv4, at_switch(world));
    expect("state file", &ipv4, in_state_file(world));
    let (at_agent, others) = at_agent(world).unwrap_or_else(|error| (Vec::new(), vec![error]));
    for (kind, wanted) in [("vtunnel", &wanted), ("host-switch", &ipv4)] {
        let of = |(sink, forward): &(String, String)| (sink == kind).then(|| forward.clone());
        expect(&format!("the agent's {kind}"), wanted, Ok(at_agent.iter().filter_map(of).collect()));
    }
    wrong.extend(others);
    if wrong.is_empty() { Ok((published.len(), (wanted.len(), ipv4.len()))) } else { Err(wrong) }
}

/// What each container and each plain process publishes.
fn published(world: &World) -> Result<Vec<Vec<Address>>, String> {
    let mut all: Vec<Vec<Address>> = lock(&world.plain).values().map(|address| vec![address.clone()]).collect();
    let list = engine::call(&world.docker, "GET", "/containers/json", None)?;
    for container in list.as_array().ok_or("no list of containers")? {
        let mut addresses: Vec<Address> = Vec::new();
        for port in container["Ports"].as_array().into_iter().flatten() {
            if let (Some(public), Some(ip)) = (port["PublicPort"].as_u64(), port["IP"].as_str()) {
                let protocol = if port["Type"] == "udp" { "udp" } else { "tcp" };
                addresses.push((ip.to_owned(), public as u16, protocol));
            }
        }
        if let Some((ip, port)) = container["Labels"][LISTENS].as_str().and_then(|text| text.split_once(':')) {
            addresses.push((ip.to_owned(), port.parse().map_err(|_| "a label")?, "tcp"));
        }
        all.push(addresses);
    }
    let containerd = world.containerd.read().unwrap_or_else(PoisonError::into_inner);
    let out = containerd.ctr("default").args(["task", "ls"]).output().map_err(|error| error.to_string())?;
    if !out.status.success() {
        return Err(format!("ctr task ls: {}", String::from_utf8_lossy(&out.stderr)));
    }
    let tasks = String::from_utf8_lossy(&out.stdout).into_owned();
    let labels = lock(&world.labels);
    for words in tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        if let [id, _, "RUNNING"] = words[..] {
            all.extend(labels.get(id).cloned());
        }
    }
    Ok(all)
}

/// What listens in the guest, whoever it is, but for the agent itself, whose sockets are on the link's address. It is all
/// published by somebody above, unless a dockerd that was killed has left something that nobody knows of any more.
fn listening(world: &World) -> Vec<Address> {
    let guest = &world.vm.guest;
    let tcp = guest.listening().into_iter().filter_map(|at| Some((at.parse().ok()?, "tcp")));
    let udp = guest.bound_udp().into_iter().map(|at| (at, "udp"));
    tcp.chain(udp).map(|(at, protocol): (SocketAddr, _)| (at.ip().to_string(), at.port(), protocol)).collect()
}

/// Where it is bound on the host, which has no admin rights.
fn on_host((ip, port, protocol): &Address) -> Option<String> {
    let ip = match ip.as_str() {
        "0.0.0.0" | "127.0.0.1" | "" => "127.0.0.1",
        "::" | "::1" => "[::1]",
        _ => return None,
    };
    Some(format!("{protocol} {ip}:{port}"))
}

fn at_hostagent(world: &World) -> Set {
    let switch = format!("{HOST}:80");
    let tcp = world.vm.host.listening().into_iter().filter(|at| *at != switch).map(|at| format!("tcp {at}"));
    tcp.chain(world.vm.host.bound_udp().iter().map(|at| format!("udp {at}"))).collect()
}

fn at_switch(world: &World) -> Result<Set, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = world.vm.connect(&format!("{HOST}:80")).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    let request = format!("GET /services/forwarder/all HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    // The list is one line, also where it comes in chunks.
    let list = body.lines().find(|line| line.starts_with('[')).ok_or(answer.clone())?;
    let list: Value = serde_json::from_str(list).map_err(|error| error.to_string())?;
    Ok(list.as_array().into_iter().flatten().map(|one| line(&one["protocol"], &one["local"])).collect())
}

fn line(protocol: &Value, local: &Value) -> String {
    format!("{} {}", protocol.as_str().unwrap_or_default(), local.as_str().unwrap_or_default())
}

fn in_state_file(world: &World) -> Result<Set, String> {
    let state = match world.state_file() {
        Ok(state) => state,
        // Nothing was ever announced.
        Err(error) if error.contains("os error 2") => return Ok(Set::new()),
        Err(error) => return Err(error),
    };
    let forwards = state["forwards"].as_array().ok_or("no forwards")?;
    Ok(forwards.iter().map(|one| line(&one["protocol"], &one["local"])).collect())
}

/// A forward at a kind of sink.
type AtSink = (String, String);

/// What the agent says it forwards; and what it says is in the way of anything.
fn at_agent(world: &World) -> Result<(Vec<AtSink>, Vec<String>), String> {
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for forward in world.ask(&["ports", "--json"])?.iter().filter(|document| document["type"] == "forward") {
        let text = |key: &str| forward[key].as_str().unwrap_or_default();
        let ip = text("host_ip");
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let line = format!("{} {ip}:{}", text("protocol"), forward["port"]);
        let kind = text("sink").split(':').next().unwrap_or_default();
        let kind = if matches!(kind, "host-switch" | "relay") { kind } else { "vtunnel" };
        match text("state") {
            "forwarding" => all.push((kind.to_owned(), line)),
            // IPv6 at host-switch.
            "left-out" => {}
            state => others.push(format!("the agent's {kind}: {line} is {state}: {}", text("reason"))),
        }
    }
    Ok((all, others))
}

/// Connects through hostagent, and where it is published on loopback through the relay, to some of what answers with a page
/// or an echo. How many did.
pub fn connect(world: &World, random: &mut Random, most: usize) -> Result<usize, String> {
    let mut answering = Vec::new();
    for addresses in published(world)? {
        // Of a range only the first has a server behind it; without CNI nothing leads to a container of containerd.
        answering.extend(addresses.iter().min_by_key(|address| address.1).and_then(on_host));
    }
    let unreachable: Set = lock(&world.labels).values().flatten().filter_map(on_host).collect();
    answering.retain(|forward| !unreachable.contains(forward));
    random.shuffle(&mut answering);
    answering.truncate(most);
    for forward in &answering {
        answers(world, forward)?;
    }
    Ok(answering.len())
}

fn answers(world: &World, forward: &str) -> Result<(), String> {
    let (protocol, address) = forward.split_once(' ').ok_or("no forward")?;
    let end = Instant::now() + DEADLINE;
    loop {
        let seen = match protocol {
            "udp" => echo(world, address),
            _ => world.vm.status(address).map_err(|error| error.to_string()),
        };
        match seen {
            Ok(answer) if answer == "200" => return Ok(()),
            other if Instant::now() >= end => return Err(format!("{forward} does not answer: {other:?}")),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn echo(world: &World, address: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().map_err(|_| "an address")?;
    let failed = |error: std::io::Error| error.to_string();
    let local = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = world.vm.host.enter(|| std::net::UdpSocket::bind(local)).map_err(failed)?;
    socket.set_read_timeout(Some(Duration::from_secs(1))).map_err(failed)?;
    socket.send_to(b"200", address).map_err(failed)?;
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer).map_err(failed)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}
