//! What the programs are made of: Cargo.lock against deny.toml without that tool and without network, docs/audit.md against
//! both, and the SBOM. `UPDATE_AUDIT=1` writes the lines of modules in docs/audit.md anew.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CRATES_MAX: usize = 45;
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
const TARGET: &str = "x86_64-unknown-linux-musl";
const OWN: &str = "rancher-desktop-agent";

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// A package of Cargo.lock.
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

fn packages() -> Vec<Package> {
    let lock = file("Cargo.lock");
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")))?;
        Some(line.trim_matches('"').to_owned())
    };
    let package = |text: &str| Package {
        name: field(text, "name").unwrap(),
        version: field(text, "version").unwrap(),
        source: field(text, "source"),
        checksum: field(text, "checksum"),
    };
    lock.split("[[package]]").skip(1).map(package).collect()
}

/// The strings of a list of deny.toml, or those of its entries' `crate`.
fn denied(section: &str, list: &str) -> Vec<String> {
    let text = file("deny.toml");
    let section =
        text.split(&format!("\n[{section}]\n")).nth(1).expect(section).split("\n[").next().unwrap().to_owned();
    let begin = format!("\n{list} = [");
    let list = section[section.find(&begin).expect(list) + begin.len()..].to_owned();
    let end = if list.starts_with('\n') { list.find("\n]") } else { list.find(']') };
    let lines = list[..end.unwrap()].lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn quoted(text: &str) -> Vec<String> {
    text.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `cargo tree`, each crate once: its words of that format.
fn tree(kinds: &str, format: &str, more: &[&str]) -> BTreeSet<String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["tree", "--locked", "--offline", "--target", TARGET, "--prefix", "none", "-e", kinds, "-f", format]);
    let output = cargo.args(more).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).filter(|line| !line.is_empty()).collect()
}

fn name_of(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

#[test]
fn every_crate_comes_from_the_registry_with_its_checksum() {
    let packages = packages();
    assert!(packages.len() > 30);
    for Package { name, source, checksum, .. } in packages {
        if name == OWN {
            assert!(source.is_none());
            continue;
        }
        assert_eq!(source.as_deref(), Some(CRATES_IO), "{name}");
        let checksum = checksum.unwrap_or_default();
        assert!(checksum.len() == 64 && checksum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}: {checksum}");
    }
}

#[test]
fn no_crate_is_there_twice_but_as_excepted() {
    let excepted: BTreeSet<String> = denied("bans", "skip").iter().flat_map(|line| quoted(line)).collect();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // Not Cargo.lock: that has crates, too, that nothing is built of, for features that nobody has asked for.
    for line in tree("normal,build,dev", "{p}", &[]) {
        let words: Vec<&str> = line.split(' ').collect();
        versions.entry(words[0].to_owned()).or_default().insert(words[1].trim_start_matches('v').to_owned());
    }
    for (name, versions) in versions {
        let unexpected = versions.iter().filter(|version| !excepted.contains(&format!("{name}@{version}"))).count();
        assert!(unexpected <= 1, "{name}: {versions:?}");
    }
}

#[test]
fn few_crates_are_built_and_none_that_is_banned() {
    let normal = tree("normal", "{p}", &[]);
    assert!((10..=CRATES_MAX).contains(&normal.len()), "{} crates: {normal:#?}", normal.len());
    let built = tree("normal,build,dev", "{p}", &[]);
    let bans = denied("bans", "deny");
    assert!(bans.len() > 10, "{bans:?}");
    for ban in bans {
        let words = quoted(&ban);
        let [name, wrappers @ ..] = &words[..] else { panic!("{ban}") };
        if wrappers.is_empty() {
            assert!(!built.iter().any(|line| name_of(line) == name), "{name}");
        } else {
            // Only for those that are named with it.
            let lock = file("Cargo.lock");
            let needs = |text: &&str| text.contains(&format!("\n \"{name}\","));
            for package in lock.split("[[package]]").filter(needs) {
                assert!(
                    wrappers.iter().any(|wrapper| package.contains(&format!("name = \"{wrapper}\"\n"))),
                    "{package}"
                );
            }
        }
    }
}

/// `A OR B` as what each choice asks for; `(A OR B) AND C` as both.
fn satisfied(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let mut depth = 0_i32;
    let mut parts = vec![String::new()];
    for word in expression.replace('/', " OR ").replace('(', "( ").replace(')', " )").split_whitespace() {
        depth += i32::from(word == "(") - i32::from(word == ")");
        if word == "AND" && depth == 0 {
            parts.push(String::new());
        } else if word != "(" && word != ")" {
            let part = parts.last_mut().unwrap();
            *part += &format!("{}{word}", if part.is_empty() { "" } else { " " });
        }
    }
    parts.iter().all(|part| part.split(" OR ").any(|choice| allowed.contains(choice)))
}

#[test]
fn every_licence_is_one_that_is_allowed_and_every_exception_is_needed() {
    let allow: Vec<String> = {
        let text = file("deny.toml");
        quoted(text.split("\n[licenses]").nth(1).unwrap().lines().find(|line| line.starts_with("allow = ")).unwrap())
    };
    let exceptions: Vec<Vec<String>> = denied("licenses", "exceptions").iter().map(|line| quoted(line)).collect();
    let mut used = BTreeSet::new();
    for line in tree("normal,build,dev", "{p}|{l}", &[]) {
        let (package, licence) = line.split_once('|').unwrap();
        let name = name_of(package);
        let mut allowed: BTreeSet<&str> = allow.iter().map(String::as_str).collect();
        if satisfied(licence, &allowed) {
            continue;
        }
        let exception = exceptions.iter().find(|words| words[0] == name);
        allowed.extend(exception.into_iter().flatten().skip(1).map(String::as_str));
        assert!(satisfied(licence, &allowed), "{name}: {licence}");
        used.insert(name.to_owned());
    }
    let excepted: BTreeSet<String> = exceptions.iter().map(|words| words[0].clone()).collect();
    assert_eq!(used, excepted);
}

#[test]
fn the_audit_guide_names_each_dependency_with_its_version() {
    let manifest = file("Cargo.toml");
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let direct = section.lines().filter_map(|line| line.split_once(" = ").filter(|_| !line.starts_with('#')));
    let versions: BTreeMap<String, String> = packages().into_iter().map(|p| (p.name, p.version)).collect();
    let expect: BTreeMap<String, String> = direct.map(|(name, _)| (name.to_owned(), versions[name].clone())).collect();
    let guide = file("docs/audit.md");
    let section = guide.split("\n## Dependencies\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cell = |row: &str, at: usize| row.split('|').nth(at).unwrap().trim().trim_matches('`').to_owned();
    let listed: BTreeMap<String, String> = rows.clone().map(|row| (cell(row, 1), cell(row, 2))).collect();
    assert_eq!(listed, expect, "docs/audit.md, \"Dependencies\"");
    // And what comes with them: every other crate of the tree, once.
    let direct: BTreeSet<&str> = expect.keys().map(String::as_str).collect();
    let brought: Vec<String> =
        rows.flat_map(|row| quoted(&row.split('|').nth(4).unwrap().replace('`', "\""))).collect();
    let normal = tree("normal", "{p}", &[]);
    let others: BTreeSet<&str> =
        normal.iter().map(|line| name_of(line)).filter(|name| !direct.contains(name) && *name != OWN).collect();
    assert_eq!(brought.iter().map(String::as_str).collect::<BTreeSet<_>>(), others);
    assert_eq!(brought.len(), others.len(), "{brought:?}");
    let counts = format!("{} crates", normal.len());
    let small = format!("{} without", tree("normal", "{p}", &["--no-default-features"]).len());
    assert!(section.contains(&counts) && section.contains(&small), "{counts}, {small}");
}

#[test]
fn the_pages_for_auditors_name_files_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for page in ["SECURITY.md", "docs/audit.md"] {
        let text = file(page);
        let files = text.split('`').skip(1).step_by(2).filter(|words| words.ends_with(".rs") || words.ends_with('/'));
        for name in files.filter(|name| !name.contains('*') && !name.contains("://")) {
            assert!(root.join("src").join(name).exists() || root.join(name).exists(), "{page}: there is no {name}");
            named += 1;
        }
        for link in text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            let from = root.join(page);
            assert!(link.starts_with("http") || from.parent().unwrap().join(link).exists(), "{page}: {link}");
        }
    }
    assert!(named > 40, "{named}");
}

/// Lines of a file: of code, of comments, and of tests.
fn count(path: &Path) -> [usize; 3] {
    let text = fs::read_to_string(path).unwrap();
    let is_tests = path.file_name().unwrap() == "tests.rs" || path.components().any(|c| c.as_os_str() == "tests");
    let lines: Vec<&str> = text.lines().collect();
    let begins = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    let begin = if is_tests { Some(0) } else { lines.windows(2).position(begins) };
    let mut counts = [0; 3];
    for (number, line) in lines.iter().map(|line| line.trim()).enumerate().filter(|(_, line)| !line.is_empty()) {
        let kind = match begin {
            Some(begin) if number >= begin => 2,
            _ => usize::from(line.starts_with("//")),
        };
        counts[kind] += 1;
    }
    counts
}

/// Each module of src, with what is below it.
fn modules() -> BTreeMap<String, [usize; 3]> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut open: Vec<PathBuf> = vec![src.clone()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(&src).unwrap();
            let name = Path::new(below.components().next().unwrap().as_os_str()).with_extension("");
            let sum = modules.entry(name.display().to_string()).or_default();
            for (sum, count) in sum.iter_mut().zip(count(&path)) {
                *sum += count;
            }
        }
    }
    modules
}

#[test]
fn the_audit_guide_says_how_much_there_is_to_read() {
    const BEGIN: &str = "<!-- modules:begin -->\n";
    const END: &str = "<!-- modules:end -->";
    let guide = file("docs/audit.md");
    let (before, rest) = guide.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let modules = modules();
    let mut sum = [0; 3];
    let mut table = String::from("| module | code | comments | tests in it |\n|---|--:|--:|--:|\n");
    for (name, counts) in &modules {
        table += &format!("| `{name}` | {} | {} | {} |\n", counts[0], counts[1], counts[2]);
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    table += &format!("| all | {} | {} | {} |\n", sum[0], sum[1], sum[2]);
    if std::env::var_os("UPDATE_AUDIT").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md");
        fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    // A few lines more or less are no news; a module that is not there is.
    let row = |line: &str| -> Option<(String, Vec<usize>)> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        Some((cells.first()?.trim_matches('`').to_owned(), cells[1..].iter().filter_map(|n| n.parse().ok()).collect()))
    };
    let shown: BTreeMap<_, _> = shown.lines().skip(2).filter_map(row).collect();
    let hint = "docs/audit.md: UPDATE_AUDIT=1 cargo test --test supply_chain";
    let names: Vec<&String> = shown.keys().filter(|name| *name != "all").collect();
    assert_eq!(names, modules.keys().collect::<Vec<_>>(), "{hint}");
    for (name, counts) in modules.iter().map(|(name, counts)| (name.as_str(), counts)).chain([("all", &sum)]) {
        for (shown, now) in shown[name].iter().zip(counts) {
            assert!(shown.abs_diff(*now) <= 40 + now / 10, "{name}: {now} lines, not {shown}; {hint}");
        }
    }
}

fn sbom(form: &str, more: &[&str]) -> serde_json::Value {
    let make = || {
        let mut command = Command::new("scripts/sbom.sh");
        let output = command.arg(form).args(more).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let bytes = make();
    assert!(bytes == make(), "the same sources, other bytes");
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
#[ignore = "needs jq (scripts/deps.sh sbom)"]
fn the_sbom_names_each_crate_with_checksum_and_licence() {
    let lock: BTreeMap<String, Package> =
        packages().into_iter().map(|p| (format!("pkg:cargo/{}@{}", p.name, p.version), p)).collect();
    for more in [&[][..], &["--no-default-features"]] {
        let sbom = sbom("cyclonedx", more);
        assert_eq!((&sbom["bomFormat"], &sbom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
        assert_eq!((&sbom["version"], &sbom["timestamp"]), (&1.into(), &serde_json::Value::Null));
        let root = &sbom["metadata"]["component"];
        assert_eq!((&root["type"], &root["name"]), (&"application".into(), &OWN.into()));
        let components = sbom["components"].as_array().unwrap();
        let mut refs = BTreeSet::from([root["bom-ref"].as_str().unwrap()]);
        for component in components {
            let purl = component["purl"].as_str().unwrap();
            let package = &lock[purl];
            assert_eq!(component["type"], "library");
            assert_eq!(
                (&component["name"], &component["version"]),
                (&package.name.as_str().into(), &package.version.as_str().into())
            );
            assert_eq!(component["hashes"][0]["alg"], "SHA-256");
            assert_eq!(component["hashes"][0]["content"].as_str(), package.checksum.as_deref());
            assert!(component["licenses"][0]["expression"].as_str().is_some_and(|text| !text.contains('/')), "{purl}");
            assert!(refs.insert(component["bom-ref"].as_str().unwrap()), "{purl} twice");
        }
        let built = tree("normal,build", "{p}", more);
        assert_eq!(refs.len(), built.len());
        let required = components.iter().filter(|component| component["scope"] == "required").count();
        assert_eq!(required + 1, tree("normal,no-proc-macro", "{p}", more).len());
        let dependencies = sbom["dependencies"].as_array().unwrap();
        assert_eq!(dependencies.len(), refs.len());
        for dependency in dependencies {
            let needs = dependency["dependsOn"].as_array().unwrap().iter().chain([&dependency["ref"]]);
            assert!(needs.into_iter().all(|need| refs.contains(need.as_str().unwrap())), "{dependency}");
        }
    }
}

#[test]
#[ignore = "needs jq (scripts/deps.sh sbom)"]
fn the_embedded_list_has_one_root_and_no_loose_end() {
    let list = sbom("auditable", &[]);
    let packages = list["packages"].as_array().unwrap();
    let text = |package: &serde_json::Value, field: &str| package[field].as_str().map(str::to_owned);
    let keys: Vec<_> = packages.iter().map(|p| (text(p, "name").unwrap(), text(p, "version").unwrap())).collect();
    assert!(keys.is_sorted(), "{keys:?}");
    let roots: Vec<_> = packages.iter().filter(|package| package["root"] == true).collect();
    assert_eq!(roots.len(), 1);
    assert_eq!((text(roots[0], "name").unwrap().as_str(), text(roots[0], "source").unwrap().as_str()), (OWN, "local"));
    // From the root, everything is reached.
    let mut reached = BTreeSet::new();
    let mut open = vec![keys.iter().position(|(name, _)| name == OWN).unwrap()];
    while let Some(at) = open.pop() {
        if reached.insert(at) {
            let needs = packages[at]["dependencies"].as_array().cloned().unwrap_or_default();
            open.extend(needs.iter().map(|need| usize::try_from(need.as_u64().unwrap()).unwrap()));
        }
    }
    assert_eq!(reached.len(), packages.len());
    assert!(packages.iter().filter(|p| p["root"] != true).all(|p| text(p, "source").as_deref() == Some("crates.io")));
}
