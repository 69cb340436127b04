//! Services as an apiserver writes them: the fields of "Service v1 core", in the order of its Go types, with what a
//! real object has besides (managedFields, cluster IP, policies), so that one is about 1 KB.

use std::fmt::Write as _;

use serde_json::json;

/// What a test says of a Service. The server adds uid, creationTimestamp and resourceVersion.
#[derive(Debug, Clone)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    pub kind: String,
    pub ports: Vec<Port>,
    /// `status.loadBalancer.ingress[].ip`.
    pub ingress: Vec<String>,
    pub ip_families: Vec<String>,
    /// Shown for the type `LoadBalancer` only, as by a real server.
    pub allocate_load_balancer_node_ports: bool,
    pub cluster_ip: String,
}

#[derive(Debug, Clone)]
pub struct Port {
    /// Empty: none.
    pub name: String,
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// A number or a name.
    pub target: String,
}

/// Who an object is, given by the server when it first sees it, and kept over changes.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub uid: String,
    pub created: String,
}

impl Port {
    pub fn new(protocol: &str, port: u16, node_port: u16) -> Port {
        Port { name: format!("p{port}"), port, node_port, protocol: protocol.to_owned(), target: port.to_string() }
    }

    pub fn tcp(port: u16, node_port: u16) -> Port {
        Port::new("TCP", port, node_port)
    }

    pub fn udp(port: u16, node_port: u16) -> Port {
        Port::new("UDP", port, node_port)
    }

    fn json(&self) -> String {
        let mut text = "{".to_owned();
        if !self.name.is_empty() {
            write!(text, "\"name\":{},", json!(self.name)).unwrap();
        }
        let target = self.target.parse::<u16>().map_or_else(|_| json!(self.target), |number| json!(number));
        write!(text, "\"protocol\":{},\"port\":{},\"targetPort\":{target}", json!(self.protocol), self.port).unwrap();
        if self.node_port != 0 {
            write!(text, ",\"nodePort\":{}", self.node_port).unwrap();
        }
        text.push('}');
        text
    }
}

impl Service {
    pub fn new(kind: &str, namespace: &str, name: &str, ports: &[Port]) -> Service {
        Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kind: kind.to_owned(),
            ports: ports.to_vec(),
            ingress: Vec::new(),
            ip_families: vec!["IPv4".to_owned()],
            allocate_load_balancer_node_ports: true,
            cluster_ip: "10.43.12.34".to_owned(),
        }
    }

    pub fn cluster_ip(namespace: &str, name: &str, ports: &[Port]) -> Service {
        Service::new("ClusterIP", namespace, name, ports)
    }

    pub fn node_port(namespace: &str, name: &str, ports: &[Port]) -> Service {
        Service::new("NodePort", namespace, name, ports)
    }

    /// With the addresses that a load balancer gave it; none yet where there are none.
    pub fn load_balancer(namespace: &str, name: &str, ports: &[Port], ingress: &[&str]) -> Service {
        let ingress = ingress.iter().map(ToString::to_string).collect();
        Service { ingress, ..Service::new("LoadBalancer", namespace, name, ports) }
    }

    /// `spec.allocateLoadBalancerNodePorts: false`.
    pub fn without_node_ports(mut self) -> Service {
        self.allocate_load_balancer_node_ports = false;
        self
    }

    pub fn families(mut self, families: &[&str]) -> Service {
        self.ip_families = families.iter().map(ToString::to_string).collect();
        self
    }

    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The object as in a list: without kind and apiVersion.
    pub(super) fn json(&self, identity: &Identity, version: u64) -> String {
        let Identity { uid, created } = identity;
        let (name, namespace) = (json!(self.name), json!(self.namespace));
        let mut text = format!(
            "{{\"metadata\":{{\"name\":{name},\"namespace\":{namespace},\"uid\":\"{uid}\",\
             \"resourceVersion\":\"{version}\",\"creationTimestamp\":\"{created}\",\"labels\":{{\"app\":{name}}},\
             \"managedFields\":[{}]}},",
            self.managed_fields(created)
        );
        let ports: Vec<String> = self.ports.iter().map(Port::json).collect();
        write!(text, "\"spec\":{{\"ports\":[{}],\"selector\":{{\"app\":{name}}},", ports.join(",")).unwrap();
        let external = self.kind == "NodePort" || self.kind == "LoadBalancer";
        if self.kind == "ExternalName" {
            write!(text, "\"type\":\"ExternalName\",\"sessionAffinity\":\"None\",\"externalName\":\"example.test\"")
                .unwrap();
        } else {
            let ip = json!(self.cluster_ip);
            write!(text, "\"clusterIP\":{ip},\"clusterIPs\":[{ip}],\"type\":{},", json!(self.kind)).unwrap();
            text.push_str("\"sessionAffinity\":\"None\"");
            if external {
                text.push_str(",\"externalTrafficPolicy\":\"Cluster\"");
            }
            let policy = if self.ip_families.len() > 1 { "PreferDualStack" } else { "SingleStack" };
            write!(text, ",\"ipFamilies\":{},\"ipFamilyPolicy\":\"{policy}\"", json!(self.ip_families)).unwrap();
            if self.kind == "LoadBalancer" {
                let allocate = self.allocate_load_balancer_node_ports;
                write!(text, ",\"allocateLoadBalancerNodePorts\":{allocate}").unwrap();
            }
            text.push_str(",\"internalTrafficPolicy\":\"Cluster\"");
        }
        text.push_str("},\"status\":{\"loadBalancer\":{");
        if !self.ingress.is_empty() {
            let list: Vec<String> =
                self.ingress.iter().map(|ip| format!("{{\"ip\":{},\"ipMode\":\"VIP\"}}", json!(ip))).collect();
            write!(text, "\"ingress\":[{}]", list.join(",")).unwrap();
        }
        text.push_str("}}}");
        text
    }

    /// What a Service made by kubectl has.
    fn managed_fields(&self, time: &str) -> String {
        let mut ports = String::new();
        for port in &self.ports {
            let key = json!(format!("k:{{\"port\":{},\"protocol\":\"{}\"}}", port.port, port.protocol));
            write!(
                ports,
                ",{key}:{{\".\":{{}},\"f:name\":{{}},\"f:nodePort\":{{}},\"f:port\":{{}},\"f:protocol\":{{}},\
                 \"f:targetPort\":{{}}}}"
            )
            .unwrap();
        }
        format!(
            "{{\"manager\":\"kubectl-client-side-apply\",\"operation\":\"Update\",\"apiVersion\":\"v1\",\
             \"time\":\"{time}\",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":{{\"f:metadata\":{{\"f:annotations\":\
             {{\".\":{{}},\"f:kubectl.kubernetes.io/last-applied-configuration\":{{}}}},\"f:labels\":{{\".\":{{}},\
             \"f:app\":{{}}}}}},\"f:spec\":{{\"f:externalTrafficPolicy\":{{}},\"f:internalTrafficPolicy\":{{}},\
             \"f:ports\":{{\".\":{{}}{ports}}},\"f:selector\":{{}},\"f:sessionAffinity\":{{}},\"f:type\":{{}}}}}}}}"
        )
    }
}
