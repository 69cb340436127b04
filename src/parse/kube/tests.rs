//! Lists and watches as API servers write them, cut, and as nobody should write them.

use super::*;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// As `GET /api/v1/services` answers, with less of what is not read.
const LIST: &str = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1042"},"items":[
  {"metadata":{"name":"kubernetes","namespace":"default","uid":"0a","labels":{"a":"b"}},
   "spec":{"ports":[{"name":"https","protocol":"TCP","port":443,"targetPort":6443}],"clusterIP":"10.43.0.1",
           "type":"ClusterIP","ipFamilies":["IPv4"]},"status":{"loadBalancer":{}}},
  {"metadata":{"name":"traefik","namespace":"kube-system","managedFields":[{"manager":"helm","fieldsV1":{"f:spec":{}}}]},
   "spec":{"ports":[{"name":"web","protocol":"TCP","port":80,"targetPort":"web","nodePort":31080},
                    {"name":"h3","protocol":"UDP","port":443,"targetPort":"h3","nodePort":31443}],
           "type":"LoadBalancer","ipFamilies":["IPv4"],"ipFamilyPolicy":"PreferDualStack"},
   "status":{"loadBalancer":{"ingress":[{"ip":"192.168.127.2","ipMode":"VIP"}]}}},
  {"metadata":{"name":"web","namespace":"default"},"spec":{"ports":[{"port":8080,"nodePort":30080}],"type":"NodePort"}}
 ]}"#;

/// As a watch has it.
const EVENT: &str = r#"{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"default","resourceVersion":"1043"},"spec":{"ports":[{"protocol":"TCP","port":8080,"nodePort":30080}],"type":"NodePort"},"status":{"loadBalancer":{}}}}"#;

fn names(bindings: &Bindings) -> Vec<String> {
    bindings.iter().map(|(b, port)| format!("{b}->{port}")).collect()
}

#[test]
fn reads_a_list() {
    let list = services(LIST.as_bytes(), ANY).unwrap();
    assert_eq!(list.resource_version, "1042");
    assert_eq!(list.skipped, [""; 0]);
    let claims: Vec<_> = list.claims.iter().map(|(key, bindings)| (key.as_ref(), names(bindings))).collect();
    let traefik = ["0.0.0.0:80/tcp->80", "0.0.0.0:31080/tcp->80", "0.0.0.0:443/udp->443", "0.0.0.0:31443/udp->443"];
    let web = ["0.0.0.0:30080/tcp->8080"];
    assert_eq!(
        claims,
        [
            ("default/web", web.map(str::to_owned).to_vec()),
            ("kube-system/traefik", traefik.map(str::to_owned).to_vec())
        ]
    );
}

#[test]
fn a_cut_list_is_an_error_wherever_it_is_cut() {
    for end in 0..LIST.len() {
        services(&LIST.as_bytes()[..end], ANY).unwrap_err();
    }
}

#[test]
fn a_cut_event_is_an_error_wherever_it_is_cut() {
    assert!(matches!(watch_event(EVENT.as_bytes(), ANY), Ok(WatchEvent::Published { .. })));
    for end in 0..EVENT.len() {
        watch_event(&EVENT.as_bytes()[..end], ANY).unwrap_err();
    }
}
