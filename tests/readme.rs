//! README.md's section for scripts: each of its `sh` blocks is run as it stands there, in order, against a running agent with
//! a real engine. A `text` block is what the block before it prints; `# exits N` is that line's exit code.
//!
//! What differs from a user's machine: the commands run in the guest's network namespace and in a mount namespace where the
//! agent's directory is at its default place; host-switch is the stand-in; and `nginx` is a local image with busybox' web
//! server, as no registry is reached.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "commands/world.rs"]
mod world;

mod support;

use std::fs;
use std::path::Path;

use world::World;

const SECTION: &str = "## Driving it from scripts and agents";
const SECTION_LINES_MAX: usize = 110;

/// A block of commands, and what it prints where the page shows it.
struct Block {
    commands: String,
    prints: Option<String>,
}

fn section() -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = page.split(SECTION).nth(1).expect(SECTION).split("\n## ").next().unwrap().to_owned();
    assert!(section.lines().count() <= SECTION_LINES_MAX, "{} lines", section.lines().count());
    section
}

fn blocks(section: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for fenced in section.split("\n```").skip(1).step_by(2) {
        let (language, text) = fenced.split_once('\n').unwrap();
        match language {
            "sh" => blocks.push(Block { commands: text.to_owned(), prints: None }),
            "text" => blocks.last_mut().expect("output of something").prints = Some(text.to_owned()),
            other => panic!("a block of {other:?}"),
        }
    }
    blocks
}

/// The block as a script, in which each line has to end with the code that it promises.
fn script(commands: &str) -> String {
    let mut script = String::from("set -eu -o pipefail\n");
    for line in commands.lines() {
        match line.split_once("  # exits ") {
            None => script.push_str(line),
            Some((command, code)) => {
                script += &format!(
                    "set +e; {command}\ncode=$?; set -e; [ $code = {code} ] || {{ echo exits $code >&2; exit 99; }}"
                );
            }
        }
        script.push('\n');
    }
    script
}

/// The text without ages and the width of columns, which differ from run to run.
fn normal(text: &str) -> Vec<String> {
    let is_age = |word: &str| {
        word.ends_with('s') && word.len() > 1 && word.bytes().all(|b| b.is_ascii_digit() || b"hms".contains(&b))
    };
    let word = |word: &str| if is_age(word) { "AGE".to_owned() } else { word.to_owned() };
    text.lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn every_command_has_its_example() {
    let section = section();
    let commands: String = blocks(&section).into_iter().map(|block| block.commands).collect();
    for command in &rancher_desktop_agent::config::commands::COMMANDS {
        if !["help", "completions"].contains(&command.name) {
            assert!(commands.contains(&format!("rancher-desktop-guestagent {}", command.name)), "{}", command.name);
            assert!(section.contains(&format!("| `{}", command.name)), "{}", command.name);
        }
    }
}

#[test]
#[ignore = "needs root, docker and jq (scripts/deps.sh docker commands)"]
fn every_block_does_what_it_says() {
    let dir = support::TempDir::new();
    let rules = dir.join("rules");
    fs::write(&rules, "# none yet\n").unwrap();
    let world = World::new(&["--rules-file", rules.to_str().unwrap()]);
    world.engine.ask(&["create", "--name", "made", "busybox:local", "/busybox"]);
    world.engine.ask(&["commit", "--change", r#"CMD ["/busybox","httpd","-f","-p","80","-h","/"]"#, "made", "nginx"]);
    world.engine.remove("made");
    let program = dir.join("rancher-desktop-guestagent");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"), &program).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    // The agent's socket, at its default place.
    let setup = "mount -t tmpfs none /run && mkdir -m 700 /run/rancher-desktop-guestagent && \
                 mount --bind \"$1\" /run/rancher-desktop-guestagent && exec bash --norc -c \"$2\"";
    for Block { commands, prints } in blocks(&section()) {
        let mut command = world.vm.guest.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", setup, "sh"]);
        command.arg(world.agent.control().parent().unwrap()).arg(script(&commands)).current_dir(dir.path());
        command.env("PATH", &path).env("DOCKER_HOST", format!("unix://{}", world.engine.socket().display()));
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{commands}{}\n{out}{err}{}", output.status, world.agent.log());
        if let Some(prints) = prints {
            assert_eq!(normal(&out), normal(&prints), "{commands}{out}");
        }
    }
}
