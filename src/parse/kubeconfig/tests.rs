//! kubeconfig files as k3s, kind and kubeadm write them, and as nobody should write them.

use super::*;

/// As k3s writes it; the data is `-----BEGIN CERTIFICATE-----` and the like.
const K3S: &str = "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: default
  user:
    client-certificate-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==
    client-key-data: LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCg==
";

fn inline(field: &str, text: &str) -> Option<Blob> {
    Some(Blob { field: field.into(), place: Place::Inline(text.as_bytes().to_vec()) })
}

#[test]
fn reads_what_k3s_writes() {
    let expect = Kubeconfig {
        server: "https://127.0.0.1:6443".into(),
        server_name: "127.0.0.1".into(),
        certificate_authority: inline(
            "clusters[name=default].cluster.certificate-authority-data",
            "-----BEGIN CERTIFICATE-----\n",
        ),
        insecure_skip_tls_verify: false,
        client_certificate: inline("users[name=default].user.client-certificate-data", "-----BEGIN CERTIFICATE-----\n"),
        client_key: inline("users[name=default].user.client-key-data", "-----BEGIN EC PRIVATE KEY-----\n"),
        token: None,
    };
    assert_eq!(parse(K3S), Ok(expect));
}

const CA: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==";

/// A file with one context `a`; the fields are those of its cluster and user, in flow style.
fn with(cluster: &str, user: &str) -> String {
    format!(
        "current-context: a\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    )
}

fn with_user(user: &str) -> String {
    with("server: 'https://h', insecure-skip-tls-verify: true", user)
}

fn with_server(server: &str) -> String {
    with(&format!("server: '{server}', insecure-skip-tls-verify: true"), "")
}

#[track_caller]
fn check_error(text: &str, expect: &str) {
    assert_eq!(parse(text).map_err(|error| error.to_string()), Err(expect.to_owned()), "{text}");
}

/// As kind and kubeadm write it, with the contexts of several clusters, and minikube's files and extensions.
const SEVERAL: &str = r#"apiVersion: v1
kind: Config
preferences: {colors: true}
current-context: "kubernetes-admin@kubernetes"
contexts:
- context: {cluster: kind-kind, user: kind-kind, namespace: x}
  name: kind-kind
- context:
    cluster: kubernetes
    user: kubernetes-admin
  name: kubernetes-admin@kubernetes
- name: minikube
  context:
    cluster: minikube
    user: minikube
    extensions:
    - {name: context_info, extension: {provider: minikube.sigs.k8s.io, version: v1.30.1}}
clusters:
- {name: kind-kind, cluster: {server: "https://127.0.0.1:43119", certificate-authority-data: "nonsense!"}}
- name: kubernetes
  cluster:
    server: https://[fd00::1]:6443/k8s/clusters/c-1//
    certificate-authority: pki/ca.crt
    tls-server-name: kubernetes.default
    disable-compression: true
- name: minikube
  cluster: {server: 'http://unused'}
users:
- name: kind-kind
  user: {exec: {command: aws}}
- name: kubernetes-admin
  user:
    client-certificate: /etc/pki/admin.crt
    client-key: /etc/pki/admin.key
    tokenFile: token
    token: ""
    exec: null
    username: ~
"#;

#[test]
fn reads_the_current_context_and_no_other() {
    let file = |field: &str, path: &str| Some(Blob { field: field.into(), place: Place::File(path.into()) });
    let expect = Kubeconfig {
        server: "https://[fd00::1]:6443/k8s/clusters/c-1".into(),
        server_name: "kubernetes.default".into(),
        certificate_authority: file("clusters[name=kubernetes].cluster.certificate-authority", "pki/ca.crt"),
        insecure_skip_tls_verify: false,
        client_certificate: file("users[name=kubernetes-admin].user.client-certificate", "/etc/pki/admin.crt"),
        client_key: file("users[name=kubernetes-admin].user.client-key", "/etc/pki/admin.key"),
        token: file("users[name=kubernetes-admin].user.tokenFile", "token"),
    };
    assert_eq!(parse(SEVERAL), Ok(expect));
    let windows = SEVERAL.replace('\n', "\r\n");
    assert_eq!(parse(&windows), parse(SEVERAL));
    assert_eq!(parse(&format!("---\n{SEVERAL}...\n")), parse(SEVERAL));
    assert_eq!(parse(&format!("\u{feff}{SEVERAL}")), parse(SEVERAL));
    let kind = parse(&SEVERAL.replace("\"kubernetes-admin@kubernetes\"", "kind-kind")).unwrap_err();
    assert_eq!(kind.to_string(), "clusters[name=kind-kind].cluster.certificate-authority-data: not base64");
}

#[test]
fn json_is_yaml() {
    let json = r#"{
	"kind": "Config", "current-context": "a\u002Fb",
	"contexts": [ {"name": "a\/b", "context": {"cluster": "c", "user": "u"}} ],
	"clusters": [{"name":"c","cluster":{"server":"https://h:1/","insecure-skip-tls-verify":true}}],
	"users":[{"name":"u","user":{"token":"t","as-groups":[],"exec":null}}]
}"#;
    for json in [json.to_owned(), json.replace(['\n', '\t'], "")] {
        let read = parse(&json).unwrap();
        assert_eq!((read.server.as_str(), read.insecure_skip_tls_verify), ("https://h:1", true));
        assert_eq!(read.token, inline("users[name=u].user.token", "t"));
    }
}

#[test]
fn what_is_looked_for_is_named() {
    let check = |from: &str, to: &str, expect: &str| {
        assert!(K3S.contains(from), "{from}");
        check_error(&K3S.replace(from, to), expect);
    };
    check("current-context: default\n", "", "current-context: not given; contexts has default");
    check("current-context: default\n", "current-context: ''\n", "current-context: not given; contexts has default");
    check("current-context: default", "current-context: [a]", "current-context: expected text");
    check("current-context: default", "current-context: x", "current-context: names x, but contexts has default");
    check("    cluster: default\n", "", "contexts[name=default].context.cluster: not given; clusters has default");
    check("    user: default\n", "", "contexts[name=default].context.user: not given; users has default");
    check("    user: default", "    user: x", "contexts[name=default].context.user: names x, but users has default");
    check(
        "    cluster: default",
        "    cluster: \"x\\e[2J\"",
        "contexts[name=default].context.cluster: names x\\u{1b}[2J, but clusters has default",
    );
    check("\nusers:", "\nother:", "contexts[name=default].context.user: names default, but users has none");
    check("  user:\n    client-certificate-data", "  user: x\n  y:\n    z", "users[name=default].user: expected a map");
    let long = "n".repeat(99);
    let shown = format!("{}...", "n".repeat(64));
    check(
        "current-context: default",
        &format!("current-context: {long}"),
        &format!("current-context: names {shown}, but contexts has default"),
    );
    let many: String = (0..9).map(|n| format!("- {{name: c{n}}}\n")).collect();
    check_error(
        &format!("contexts:\n{many}"),
        "current-context: not given; contexts has c0, c1, c2, c3, c4 and 4 more",
    );
    check_error(
        "current-context: a\ncontexts: [{name: a}, {name: a}]",
        "current-context: names a, and contexts has more than one of that name",
    );
    check_error("current-context: a\ncontexts: {a: b}", "current-context: names a, but contexts has none");
    check_error("just text", "the file: expected a map");
    check_error("---\n", "the file: expected a map");
    check_error("", "line 1: the file is empty");
    check_error("# nothing\n", "line 1: the file is empty");
}

#[test]
fn servers() {
    for (given, expect, name) in [
        ("https://h", "https://h", "h"),
        ("HTTPS://h:6443///", "https://h:6443", "h"),
        ("https://10.0.0.1:1/a/b%20c/", "https://10.0.0.1:1/a/b%20c", "10.0.0.1"),
        ("https://[::1]", "https://[::1]", "::1"),
        ("https://[fd00::1]:6443", "https://[fd00::1]:6443", "fd00::1"),
        ("https://a-b.c_d.example:65535", "https://a-b.c_d.example:65535", "a-b.c_d.example"),
    ] {
        let kubeconfig = parse(&with_server(given)).unwrap();
        assert_eq!((kubeconfig.server.as_str(), kubeconfig.server_name.as_str()), (expect, name));
    }
    let check = |given: &str, cause: &str| {
        check_error(&with_server(given), &format!("clusters[name=c].cluster.server: {cause}"));
    };
    check("", "not given");
    check("http://h:8080", "http:// would show our credentials to anybody in between: use https://");
    for other in ["h:6443", "ftp://h", "unix:///x", "https:/h"] {
        check(other, "expected https://HOST[:PORT][/PATH]");
    }
    check("https://me:secret@h", "a user name or password in the address: put credentials into users");
    check("https://h/?a=b", "expected no ? and no #");
    check("https://h#a", "expected no ? and no #");
    let long = format!("https://{}", "a.".repeat(127) + "a");
    for host in
        ["https://", "https:///x", "https://:1", "https://a b", "https://fd00::1", "https://[::1", "https://[x]"]
            .into_iter()
            .chain(["https://1.2.3", "https://256.1.1.1", "https://-a", "https://a..b", "https://[fe80::1%25e]", &long])
    {
        check(host, "the host is neither a name nor an address (IPv6 goes into brackets)");
    }
    for port in ["", "0", "65536", "+1", "x", "-1"] {
        check(&format!("https://h:{port}"), "the port is not a number from 1 to 65535");
    }
    check("https://h/a b", "the path has characters that URLs have not");
    check("https://h/\u{fc}", "the path has characters that URLs have not");
    check(&format!("https://h/{}", "x".repeat(1024)), "longer than 1024 bytes");
}

#[test]
fn the_server_has_to_be_proved() {
    let place = "clusters[name=c].cluster";
    let check = |fields: &str, expect: &str| {
        check_error(&with(&format!("server: 'https://h', {fields}"), ""), &format!("{place}.{expect}"));
    };
    let none =
        "certificate-authority-data: not given, nor certificate-authority; the system's authorities are not used";
    check("", none);
    check("certificate-authority: '', certificate-authority-data: ''", none);
    check("insecure-skip-tls-verify: false", none);
    for other in ["yes", "True", "1", "on"] {
        check(&format!("insecure-skip-tls-verify: {other}"), "insecure-skip-tls-verify: expected true or false");
    }
    check("insecure-skip-tls-verify: [true]", "insecure-skip-tls-verify: expected text");
    let both = "given together with insecure-skip-tls-verify: leave one of them out";
    check("insecure-skip-tls-verify: true, certificate-authority: f", &format!("certificate-authority: {both}"));
    check(
        &format!("insecure-skip-tls-verify: true, certificate-authority-data: {CA}"),
        &format!("certificate-authority-data: {both}"),
    );
    check("certificate-authority-data: 'AA='", "certificate-authority-data: not base64");
    check(
        "certificate-authority-data: AAAA",
        "certificate-authority-data: decoded, it is not PEM: no -----BEGIN in it",
    );
    check("certificate-authority: \"a\\0b\"", "certificate-authority: not a path");
    check(&format!("certificate-authority: {}", "x".repeat(4097)), "certificate-authority: not a path");
    check("certificate-authority: {a: b}", "certificate-authority: expected text");
    check("certificate-authority: f, tls-server-name: 'a b'", "tls-server-name: neither a name nor an address");
    check(
        "certificate-authority: f, proxy-url: 'http://p'",
        "proxy-url: proxies are not supported: use an address that is reached directly",
    );
    // What is in the file wins over other files; white space in it does not matter.
    let (first, rest) = CA.split_at(9);
    let both =
        format!("server: 'https://h', certificate-authority: f, certificate-authority-data: ' {first}\n\n  {rest}'");
    let expect = inline("clusters[name=c].cluster.certificate-authority-data", "-----BEGIN CERTIFICATE-----\n");
    assert_eq!(parse(&with(&both, "")).unwrap().certificate_authority, expect);
    for name in ["10.0.0.1", "fd00::1", "a.example"] {
        let fields = format!("server: 'https://h', certificate-authority: f, tls-server-name: '{name}'");
        assert_eq!(parse(&with(&fields, "")).unwrap().server_name, name);
    }
}

#[test]
fn users() {
    let anonymous = parse(&with_user("")).unwrap();
    assert_eq!((anonymous.client_certificate, anonymous.client_key, anonymous.token), (None, None, None));
    let check = |fields: &str, expect: &str| check_error(&with_user(fields), &format!("users[name=u].user.{expect}"));
    for field in ["exec", "auth-provider", "username", "password", "as", "as-uid", "as-groups", "as-user-extra"] {
        let expect = format!("{field}: not supported: use a client certificate, a token or a token file");
        check(&format!("token: t, {field}: x"), &expect);
        check(&format!("{field}: [x]"), &expect);
        for nothing in ["", "''", "null", "[]", "{}"] {
            assert!(parse(&with_user(&format!("{field}: {nothing}"))).is_ok(), "{field}: {nothing}");
        }
    }
    check("client-certificate: f", "client-key: not given, but client-certificate is: both are needed");
    check(&format!("client-key-data: {CA}"), "client-certificate: not given, but client-key is: both are needed");
    check("client-key-data: '%'", "client-key-data: not base64");
    check("token: [a]", "token: expected text");
    for bad in ["\"a\\nb\"", "a b", "\"a\\tb\"", "\u{fc}", "\"a\\e\""] {
        check(&format!("token: {bad}"), "token: has spaces, control characters or others that tokens have not");
    }
    check("token: \" \\n\"", "token: empty");
    check(&format!("token: {}", "x".repeat((64 << 10) + 1)), "token: longer than 64 KiB");
    for (given, expect) in [("abc.DEF-1~+/=", "abc.DEF-1~+/="), ("\"t\\r\\n\"", "t"), ("123", "123"), ("true", "true")]
    {
        let read = parse(&with_user(&format!("token: {given}, tokenFile: f"))).unwrap();
        assert_eq!(read.token, inline("users[name=u].user.token", expect));
    }
}

#[test]
fn yaml_that_could_grow_is_refused() {
    check_error("a: &x b\n", "line 1: an anchor (&); leave it out");
    check_error("a: b\nc: &x [d]\n", "line 2: an anchor (&); leave it out");
    assert!(parse("a: *x\n").unwrap_err().to_string().starts_with("line 1: not YAML: "));
    check_error("a: b\n<<: {c: d}\n", "line 2: a merge key (<<); write out what it stands for");
    check_error("a: !!int 1\n", "line 1: a tag (!); leave it out");
    check_error("a: !x {b: c}\n", "line 1: a tag (!); leave it out");
    check_error("current-context: !!str null\n", "current-context: names null, but contexts has none");
    check_error("a: b\n---\nc: d\n", "line 2: a second document; only one is read");
    check_error("a: b\n\na: c\n", "line 3: a key that its map has already");
    check_error("? [a]\n: b\n", "line 1: a list or a map where a key should be");
    check_error(&format!("a: {}", "[".repeat(17)), "line 1: more than 16 lists and maps inside each other");
    check_error(&format!("a: [{}", "x, ".repeat(10_000)), "line 1: more than 10000 values in the file");
    check_error(&"x".repeat(FILE_BYTES_MAX + 1), "the file: larger than 1048576 bytes");
    check_error(&"x".repeat(FILE_BYTES_MAX), "the file: expected a map");
    let bomb: String = (1..9).map(|n| format!("a{n}: &a{n} [{}]\n", format!("*a{},", n - 1).repeat(9))).collect();
    check_error(&format!("a0: &a0 lol\n{bomb}"), "line 1: an anchor (&); leave it out");
}

#[test]
fn errors_and_debug_keep_secrets() {
    let secret = "c2VjcmV0LXNlY3JldA";
    for fields in [
        format!("client-key-data: {secret}%"),
        format!("client-key-data: {secret}=="),
        format!("token: '{secret} x'"),
        format!("password: {secret}"),
        format!("token: {secret}, token: {secret}"),
        format!("token: '{secret}"),
        format!("token: *{secret}"),
        format!("token: !{secret}!x y"),
        format!("token: \"{secret}\\q\""),
    ] {
        let error = parse(&with_user(&fields)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret), "{error}");
    }
    let read = parse(&with_user(&format!("token: {secret}"))).unwrap();
    assert!(!format!("{read:?}").contains(secret) && format!("{read:?}").contains("Inline(18 bytes)"));
}

#[test]
fn no_input_makes_it_panic() {
    for whole in [K3S, SEVERAL] {
        for end in (0..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
            drop(parse(&whole[..end]));
        }
    }
    let mut state = 7_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 40).unwrap()
    };
    let tokens =
        ["\n", " ", "\t", "- ", ": ", "? ", "{", "}", "[", "]", ",", "#", "&a ", "*a", "!!str ", "!", "|", ">-\n"]
            .into_iter()
            .chain(["\"", "'", "%TAG ", "---\n", "...", "\0", "\u{feff}", "\u{1b}", "\\x", "\u{2028}", "@", "`"]);
    let tokens: Vec<&str> = tokens.collect();
    for _ in 0..4_000 {
        let mut text: Vec<char> = if next() % 2 == 0 { K3S } else { SEVERAL }.chars().collect();
        for _ in 0..=next() % 4 {
            let (at, token) = (next() % text.len(), tokens[next() % tokens.len()]);
            let end = (at + next() % 3).min(text.len());
            text.splice(at..end, token.chars());
        }
        drop(parse(&text.iter().collect::<String>()));
    }
    for token in tokens {
        drop(parse(&token.repeat(20_000)));
        drop(parse(&format!("a: {}", token.repeat(20_000))));
    }
}
