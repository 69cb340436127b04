//! The real CNI plugins `bridge` and `portmap` in the guest's namespace, called as nerdctl, CRI and k3s's servicelb
//! call them, so that the NAT rules are theirs. Needs root, containernetworking-plugins, iptables and iproute2.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};

use super::vm::Namespace;
use super::{TempDir, run, unique};

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// The name of the network, which the names of portmap's chains are made of.
pub const NETWORK: &str = "bridge";

/// Which iptables the plugins find.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Variant {
    Legacy,
    Nft,
}

/// A network with a bridge `cni0`, 10.4.0.0/24, and fd00:10:4::/64 where it is dual.
pub struct Cni(Arc<Shared>);

/// What an attachment needs to take itself away again.
struct Shared {
    dir: TempDir,
    namespace: String,
    dual: bool,
}

/// A published port, as in portmap's `portMappings`.
pub struct Port<'a> {
    /// Empty: none given.
    pub host_ip: &'a str,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: &'a str,
}

/// A container's network namespace with its address and rules.
pub struct Attachment {
    pub netns: PathBuf,
    /// The container's IPv4 address.
    pub ip: IpAddr,
    /// All of its addresses.
    pub ips: Vec<IpAddr>,
    cni: Arc<Shared>,
    netns_name: String,
    container_id: String,
    /// Configurations of what is still attached, in the order of their ADD.
    added: Vec<(&'static str, Value)>,
}

impl Cni {
    pub fn new(namespace: &Namespace, variant: Variant) -> Cni {
        Cni::with(namespace, variant, false)
    }

    /// With IPv6.
    pub fn new_dual(namespace: &Namespace, variant: Variant) -> Cni {
        Cni::with(namespace, variant, true)
    }

    fn with(namespace: &Namespace, variant: Variant, dual: bool) -> Cni {
        assert!(Path::new(PLUGINS).join("portmap").exists(), "no CNI plugins: run scripts/deps.sh cni");
        let dir = TempDir::new();
        let multi = match variant {
            Variant::Legacy => "/usr/sbin/xtables-legacy-multi",
            Variant::Nft => "/usr/sbin/xtables-nft-multi",
        };
        for family in ["iptables", "ip6tables"] {
            for tool in ["", "-save", "-restore"] {
                symlink(multi, dir.join(&format!("{family}{tool}"))).unwrap();
            }
        }
        Cni(Arc::new(Shared { dir, namespace: namespace.name().to_owned(), dual }))
    }

    /// The iptables or ip6tables of this variant, in the guest.
    pub fn iptables(&self, tool: &str) -> Command {
        let mut command = self.0.in_guest();
        command.arg(self.0.dir.join(tool));
        command
    }

    /// Makes a network namespace for that container, joins it to the bridge, and publishes the ports.
    pub fn add(&self, container_id: &str, ports: &[Port]) -> Attachment {
        let netns_name = format!("rda-c-{}-{}", std::process::id(), unique());
        run(Command::new("ip").args(["netns", "add", &netns_name]));
        run(Command::new("ip").args(["-n", &netns_name, "link", "set", "lo", "up"]));
        let mut attachment = Attachment {
            netns: Path::new("/var/run/netns").join(&netns_name),
            ip: IpAddr::from([0, 0, 0, 0]),
            ips: Vec::new(),
            cni: self.0.clone(),
            netns_name,
            container_id: container_id.to_owned(),
            added: Vec::new(),
        };
        let mut ranges = vec![json!([{"subnet": "10.4.0.0/24"}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if self.0.dual {
            ranges.push(json!([{"subnet": "fd00:10:4::/64"}]));
            routes.push(json!({"dst": "::/0"}));
        }
        let ipam =
            json!({"type": "host-local", "dataDir": self.0.dir.join("ipam"), "ranges": ranges, "routes": routes});
        let result = attachment.attach(
            "bridge",
            json!({"cniVersion": "1.0.0", "name": NETWORK, "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipMasq": true, "hairpinMode": true, "ipam": ipam}),
        );
        let addresses = result["ips"].as_array().unwrap().iter();
        let bare = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
        attachment.ips = addresses.map(bare).collect();
        attachment.ip = attachment.ips[0];
        if !ports.is_empty() {
            let mappings: Vec<Value> = ports.iter().map(mapping).collect();
            attachment.attach(
                "portmap",
                json!({"cniVersion": "1.0.0", "name": NETWORK, "type": "portmap", "capabilities": {"portMappings": true},
                    "runtimeConfig": {"portMappings": mappings}, "prevResult": result}),
            );
        }
        attachment
    }
}

impl Shared {
    fn in_guest(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.namespace));
        command
    }

    /// Calls a plugin; its answer, or why it failed.
    fn call(&self, verb: &str, attachment: &Attachment, plugin: &str, config: &Value) -> Result<Value, String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = self.in_guest();
        command
            .arg(Path::new(PLUGINS).join(plugin))
            .env("PATH", format!("{}:{path}", self.dir.path().display()))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        // Small enough for the pipe.
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(config.to_string().as_bytes()));
        let out = child.wait_with_output().map_err(|error| error.to_string())?;
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if !out.status.success() {
            return Err(format!("{plugin} {verb}: {} {written:?}\n{stdout}{stderr}", out.status));
        }
        Ok(serde_json::from_str(&stdout).unwrap_or_default())
    }
}

fn mapping(port: &Port) -> Value {
    let mut mapping =
        json!({"hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol});
    if !port.host_ip.is_empty() {
        mapping["hostIP"] = json!(port.host_ip);
    }
    mapping
}

impl Attachment {
    /// A command in the container's network namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(program);
        command
    }

    /// Takes the rules, the link and the namespace away, as a container that is removed in order does.
    pub fn delete(mut self) {
        self.detach().unwrap();
    }

    /// Calls DEL of what is attached; what failed may be tried again.
    pub fn try_detach(&mut self) -> Result<(), String> {
        while let Some((plugin, config)) = self.added.last().cloned() {
            self.cni.call("DEL", self, plugin, &config)?;
            self.added.pop();
        }
        Ok(())
    }

    /// Takes the namespace away and leaves the rules, as a crash of whoever ran the container does.
    pub fn abandon(mut self) {
        self.added.clear();
    }

    fn attach(&mut self, plugin: &'static str, config: Value) -> Value {
        // A failed ADD may have left something behind too.
        self.added.push((plugin, config.clone()));
        self.cni.call("ADD", self, plugin, &config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Calls DEL of all that is attached, whatever one of them says.
    fn detach(&mut self) -> Result<(), String> {
        let mut result = Ok(());
        for (plugin, config) in std::mem::take(&mut self.added).into_iter().rev() {
            result = self.cni.call("DEL", self, plugin, &config).and(result);
        }
        result
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let _ = self.detach();
        let _ = Command::new("ip").args(["netns", "del", &self.netns_name]).output();
    }
}
