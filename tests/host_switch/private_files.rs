//! The token's file and the state file, good ones and bad ones.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::support::engine_stub::{id, ports};
use crate::support::eventually;
use crate::world::{World, lines};

type Spoil = fn(&World, &Path);

fn write_token(path: &Path, token: &str, mode: u32) {
    fs::write(path, token).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_token_is_sent_read_again_and_never_shown() {
    let world = World::new();
    let path = world.dir.join("token");
    world.server.require_token(Some("s3cret-one"));
    world.engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8301")]));
    let agent = world.agent(&["--api-token-file", path.to_str().unwrap(), "-debug"]);
    agent.wait_log("sink unreachable");
    write_token(&path, "s3cret-one\n", 0o640);
    agent.wait_log("chmod 600");
    write_token(&path, "two lines\ns3cret-one\n", 0o600);
    agent.wait_log("one line of visible ASCII");
    write_token(&path, "s3cret-one\n", 0o600);
    world.wait(&["127.0.0.1:8301"], &[]);
    world.server.require_token(Some("s3cret-two"));
    world.engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8302")]));
    agent.wait_log("it wants another token");
    write_token(&path, "s3cret-two", 0o600);
    world.wait(&["127.0.0.1:8301", "127.0.0.1:8302"], &[]);
    assert!(!agent.log().contains("s3cret"), "{}", agent.log());
    assert_eq!(agent.stop(), Some(0));
    world.wait(&[], &[]);
}

#[test]
fn a_server_that_wants_a_token_is_said_to() {
    let world = World::new();
    world.server.require_token(Some("s3cret"));
    world.engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8303")]));
    let agent = world.agent(&[]);
    agent.wait_log("answers 401: name a file with its token by --api-token-file");
}

#[test]
fn a_bad_state_file_is_one_warning_and_counts_as_empty() {
    let bad: [(&str, Spoil); 7] = [
        ("EOF while parsing", |world, path| {
            let text = fs::read_to_string(path).unwrap();
            world.write_state_file(&text[..text.len() / 2]);
        }),
        ("lets others in", |_, path| fs::set_permissions(path, Permissions::from_mode(0o622)).unwrap()),
        ("longer than", |_, path| fs::write(path, " ".repeat((16 << 20) + 1)).unwrap()),
        ("no regular file", |world, path| {
            fs::rename(path, world.dir.join("elsewhere")).unwrap();
            symlink(world.dir.join("elsewhere"), path).unwrap();
        }),
        ("no regular file", |_, path| {
            fs::remove_file(path).unwrap();
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        }),
        ("version", |world, path| {
            let text = fs::read_to_string(path).unwrap();
            world.write_state_file(&text.replace(":1,", ":2,"));
        }),
        ("not ours to remove", |world, path| {
            let text = fs::read_to_string(path).unwrap();
            world.write_state_file(&text.replace(&world.tap, "192.168.127.2"));
        }),
    ];
    for (why, spoil) in bad {
        spoilt(why, spoil);
    }
}

#[test]
#[ignore = "needs root, to give a file away"]
fn a_foreign_state_file_counts_as_empty() {
    spoilt("belongs to user 12345", |_, path| {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(path, Some(12345), None).unwrap();
    });
    spoilt("has to belong to the agent's user", |_, path| {
        std::os::unix::fs::chown(path, Some(12345), None).unwrap();
    });
}

fn spoilt(why: &str, spoil: Spoil) {
    let world = World::new();
    world.insert_ours("127.0.0.1:8304");
    world.write_state(&["127.0.0.1:8304"]);
    spoil(&world, &world.state_file());
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8305")]));
    world.wait(&["127.0.0.1:8304", "127.0.0.1:8305"], &[]);
    agent.wait_log(why);
    assert_eq!(lines(&agent, "what an earlier run left at host-switch is not known"), 1, "{}", agent.log());
    let state = fs::read_to_string(world.state_file()).unwrap();
    assert!(state.contains("127.0.0.1:8305") && !state.contains("8304"), "{why}: {state}");
    assert!(fs::symlink_metadata(world.state_file()).unwrap().is_file(), "{why}");
    let mode = fs::metadata(world.state_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{why}");
}

#[test]
fn a_state_file_that_cannot_be_written_is_one_warning() {
    let world = World::new();
    // Not even root can make a directory of a file.
    fs::write(world.dir.join("run"), "").unwrap();
    let agent = world.agent(&[]);
    for n in 1..4 {
        world.engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &(8310 + n).to_string())]));
    }
    world.wait(&["127.0.0.1:8311", "127.0.0.1:8312", "127.0.0.1:8313"], &[]);
    assert_eq!(lines(&agent, "cannot keep what is ours"), 1, "{}", agent.log());
    fs::remove_file(world.dir.join("run")).unwrap();
    world.engine.end(&id(2));
    agent.wait_log("can be written again");
    eventually("the state file", || match fs::read_to_string(world.state_file()) {
        Ok(text) if text.contains("8311") && !text.contains("8312") => Ok(()),
        other => Err(other),
    });
    let dir = fs::metadata(world.dir.join("run")).unwrap().permissions().mode();
    assert_eq!(dir & 0o777, 0o700);
}
