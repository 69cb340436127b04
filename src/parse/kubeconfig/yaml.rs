//! YAML as far as a kubeconfig needs it: text, lists and maps, as a tree that no file can make large.
//!
//! Aliases, anchors, merge keys and tags are refused, so a tree is never larger than its text; nodes and depth have
//! limits. Errors name a line and never quote from it: there are secrets in these files.

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use super::KubeconfigError;
use crate::ordered;

/// Lists and maps inside each other.
const DEPTH_MAX: usize = 16;

/// Scalars, lists and maps of a file, keys included.
const NODES_MAX: usize = 10_000;

/// A value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Nothing: `null`, `~`, or no text where some could be.
    Null,
    /// Text, or anything else that is written without quotes.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping.
    Map(Map),
}

/// A mapping from text.
pub(super) type Map = ordered::Map<String, Node>;

/// A list or map that is not complete.
enum Open {
    List(Vec<Node>),
    /// With the key whose value comes next.
    Map(Map, Option<String>),
}

/// What has been read so far.
#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Node, KubeconfigError> {
    let mut tree = Tree::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| at(error.marker().line(), &format!("not YAML: {}", error.info())))?;
        tree.add(event).map_err(|cause| at(span.start.line(), cause))?;
    }
    tree.root.ok_or_else(|| at(1, "the file is empty"))
}

fn at(line: usize, cause: &str) -> KubeconfigError {
    KubeconfigError { place: format!("line {line}"), cause: cause.to_owned() }
}

impl Tree {
    fn add(&mut self, event: Event<'_>) -> Result<(), &'static str> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => Err("a second document; only one is read"),
            Event::Alias(_) => Err("an alias (*); write out what it stands for"),
            Event::Scalar(text, style, anchor, tag) => {
                self.count()?;
                refuse(anchor, tag.as_deref().filter(|tag| !is_text(tag)))?;
                let plain = style == ScalarStyle::Plain && tag.is_none();
                self.scalar(text.into_owned(), plain)
            }
            Event::SequenceStart(anchor, tag) => self.begin(anchor, tag.as_deref(), Open::List(Vec::new())),
            Event::MappingStart(anchor, tag) => self.begin(anchor, tag.as_deref(), Open::Map(Map::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(list)) => self.put(Node::List(list)),
                Some(Open::Map(map, _)) => self.put(Node::Map(map)),
                None => Err("an end without a beginning"),
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn count(&mut self) -> Result<(), &'static str> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > NODES_MAX { Err("more than 10000 values in the file") } else { Ok(()) }
    }

    fn begin(&mut self, anchor: usize, tag: Option<&Tag>, what: Open) -> Result<(), &'static str> {
        self.count()?;
        refuse(anchor, tag)?;
        if let Some(Open::Map(_, None)) = self.open.last() {
            return Err("a list or a map where a key should be");
        }
        if self.open.len() >= DEPTH_MAX {
            return Err("more than 16 lists and maps inside each other");
        }
        self.open.push(what);
        Ok(())
    }

    fn scalar(&mut self, text: String, plain: bool) -> Result<(), &'static str> {
        if let Some(Open::Map(map, key @ None)) = self.open.last_mut() {
            if plain && text == "<<" {
                return Err("a merge key (<<); write out what it stands for");
            }
            if map.contains_key(&text) {
                return Err("a key that its map has already");
            }
            *key = Some(text);
            return Ok(());
        }
        let null = plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
        self.put(if null { Node::Null } else { Node::Text(text) })
    }

    fn put(&mut self, node: Node) -> Result<(), &'static str> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(list)) => list.push(node),
            Some(Open::Map(map, key)) => drop(map.insert(key.take().ok_or("a value without a key")?, node)),
        }
        Ok(())
    }
}

fn refuse(anchor: usize, tag: Option<&Tag>) -> Result<(), &'static str> {
    match (anchor, tag) {
        (0, None) => Ok(()),
        (0, Some(_)) => Err("a tag (!); leave it out"),
        _ => Err("an anchor (&); leave it out"),
    }
}

/// `!!str`
fn is_text(tag: &Tag) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == "str"
}
