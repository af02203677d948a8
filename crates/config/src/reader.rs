//! Values of a known kind out of a located document; whatever is wrong is told where it stands.

use located::{Content, Fault, Node, Place, nearest};
use serde_json::Value;

/// The file that is read, and what there is to say about it.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a str,
    pub(crate) notes: Vec<Fault>,
}

impl Reader<'_> {
    pub(crate) fn fault(&self, node: &Node, what: impl Into<String>) -> Fault {
        let place = Place { file: self.file.to_owned(), line: node.line, column: node.column };
        Fault { place, what: what.into() }
    }

    pub(crate) fn note(&mut self, node: &Node, what: impl Into<String>) {
        let note = self.fault(node, what);
        self.notes.push(note);
    }

    /// The entries of a map, each with the known key that it is. As in Go, upper and lower case are the same.
    pub(crate) fn entries<'n>(
        &self,
        node: &'n Node,
        what: &str,
        known: &[&'static str],
    ) -> Result<Vec<(&'static str, &'n Node)>, Fault> {
        let Content::Map(entries) = &node.content else {
            return Err(self.fault(node, format!("{what} is {}, but must have keys and values", kind(node))));
        };
        let mut found: Vec<(&'static str, &Node)> = Vec::new();
        for (key, value) in entries {
            let Some(key) = known.iter().find(|known| known.eq_ignore_ascii_case(key)) else {
                let meant = match nearest(key, known.iter().copied()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("there are {}", known.join(", ")),
                };
                let shown: String = key.chars().take(60).collect();
                return Err(self.fault(value, format!("{what} has no key `{shown}`: {meant}")));
            };
            if found.iter().any(|(other, _)| other == key) {
                return Err(self.fault(value, format!("`{key}` stands twice in {what}: leave out one")));
            }
            found.push((key, value));
        }
        Ok(found)
    }

    pub(crate) fn text<'n>(&self, node: &'n Node, key: &str) -> Result<&'n str, Fault> {
        match &node.content {
            Content::Plain(Value::String(text)) => Ok(text),
            Content::Plain(Value::Number(number)) => Err(self.fault(
                node,
                format!("`{key}` has the number {number}, but must be text: put what you mean in quotes"),
            )),
            _ => Err(self.fault(node, format!("`{key}` is {}, but must be text", kind(node)))),
        }
    }

    pub(crate) fn switch(&self, node: &Node, key: &str) -> Result<bool, Fault> {
        match &node.content {
            Content::Plain(Value::Bool(switch)) => Ok(*switch),
            _ => Err(self.fault(node, format!("`{key}` is {}, but must be true or false", kind(node)))),
        }
    }

    pub(crate) fn number(&self, node: &Node, key: &str) -> Result<u32, Fault> {
        let number = match &node.content {
            Content::Plain(Value::Number(number)) => {
                number.as_u64().and_then(|number| u32::try_from(number).ok())
            }
            Content::Plain(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        number
            .ok_or_else(|| self.fault(node, format!("`{key}` is {}, but must be a whole number", kind(node))))
    }

    /// The items of a list that has some: an empty one would be read as no demand by some, and as an impossible one by others.
    pub(crate) fn items<'n>(&self, node: &'n Node, key: &str) -> Result<&'n [Node], Fault> {
        match &node.content {
            Content::List(items) if !items.is_empty() => Ok(items),
            Content::List(_) => {
                Err(self
                    .fault(node, format!("`{key}` is an empty list: name something, or leave the key out")))
            }
            _ => Err(self.fault(node, format!("`{key}` is {}, but must be a list", kind(node)))),
        }
    }

    /// A list of values of one kind, written as text.
    pub(crate) fn list<T>(
        &self,
        node: &Node,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Fault> {
        let one = |item: &Node| {
            let text = self.text(item, key)?;
            parse(text).map_err(|why| self.fault(item, format!("`{key}`: {why}")))
        };
        self.items(node, key)?.iter().map(one).collect()
    }
}

/// What a value is, in words.
fn kind(node: &Node) -> String {
    match &node.content {
        Content::Plain(Value::Null) => "empty".to_owned(),
        Content::Plain(Value::Bool(switch)) => switch.to_string(),
        Content::Plain(Value::Number(number)) => format!("the number {number}"),
        Content::Plain(Value::String(text)) => format!("{:?}", text.chars().take(60).collect::<String>()),
        Content::Plain(_) => "a value".to_owned(),
        Content::List(_) => "a list".to_owned(),
        Content::Map(_) => "a map".to_owned(),
    }
}
