//! What objects are meant: `pods`, `pod a b`, `pod/a node/n`, `pods,nodes`.

use anyhow::{Result, bail};

use super::Context;
use super::follow::Named;
use crate::api::json::Json;
use crate::api::kinds::Kind;
use crate::client::{self, Client, Kinds};

/// A kind, and the one object of it that is meant; none: all.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) kind: Kind,
    pub(super) name: Option<String>,
}

/// Understands the words of the command line.
pub(super) fn targets(kinds: &Kinds, words: &[String]) -> Result<Vec<Target>> {
    let Some((first, names)) = words.split_first() else {
        bail!("which kind? For example `pods`, or `pod/NAME`")
    };
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| pair(kinds, word)).collect();
    }
    let mut targets = Vec::new();
    for word in first.split(',') {
        let kind = known(kinds, word)?;
        if names.is_empty() {
            targets.push(Target { kind: kind.clone(), name: None });
        }
        targets.extend(names.iter().map(|name| Target { kind: kind.clone(), name: Some(name.clone()) }));
    }
    Ok(targets)
}

fn pair(kinds: &Kinds, word: &str) -> Result<Target> {
    match word.split_once('/') {
        Some((kind, name)) if !name.is_empty() && !name.contains('/') => {
            Ok(Target { kind: known(kinds, kind)?.clone(), name: Some(name.to_owned()) })
        }
        _ => bail!("{word:?} is not KIND/NAME: write all of them so, or KIND NAME..."),
    }
}

/// Which objects, where none is named.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Those with these labels
    #[arg(long, short = 'l', value_name = "LABELS", conflicts_with = "all")]
    selector: Option<String>,
}

impl Choice {
    /// Whether anything was chosen.
    pub(super) fn is_made(&self) -> bool {
        self.all || self.selector.is_some()
    }

    /// All of them, where nothing else was chosen.
    pub(super) fn or_all(mut self) -> Self {
        self.all = self.selector.is_none();
        self
    }
}

/// The objects that are named, or those that are chosen among all.
pub(super) fn chosen(
    context: &Context,
    client: &Client,
    kinds: &Kinds,
    words: &[String],
    choice: &Choice,
) -> Result<Vec<Named>> {
    let mut objects = Vec::new();
    for Target { kind, name } in targets(kinds, words)? {
        let place = if kind.is_namespaced() { context.namespace() } else { "" };
        if let Some(name) = name {
            if choice.is_made() {
                bail!("{name} is named, and --all or -l chooses as well: leave out one of them");
            }
            objects.push(Named { kind, namespace: place.to_owned(), name });
            continue;
        }
        let query = match &choice.selector {
            Some(selector) => format!("?labelSelector={}", client::segment(selector)),
            None if choice.all => String::new(),
            None => bail!("which {}? Give names, -l LABELS, or --all", kind.plural),
        };
        let list = client.get(&format!("{}{query}", client::collection(&kind, Some(place))))?;
        objects.extend(list.items("/items").iter().map(|object| Named {
            kind: kind.clone(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
        }));
    }
    Ok(objects)
}

/// The kind that a word means.
pub(super) fn known<'a>(kinds: &'a Kinds, word: &str) -> Result<&'a Kind> {
    if let Some(kind) = kinds.named(word) {
        return Ok(kind);
    }
    let words = kinds.iter().flat_map(|kind| [kind.plural.as_str(), kind.singular.as_str()]);
    match located::nearest(word, words) {
        Some(meant) => bail!("this node serves no {word:?}: did you mean {meant}?"),
        None => bail!("this node serves no {word:?}: `virtsim api-resources` lists what there is"),
    }
}

/// `pod/NAME` or `NAME`, where only pods can be meant.
pub(super) fn pod_name(word: &str) -> Result<&str> {
    match word.split_once('/') {
        None => Ok(word),
        Some(("pod" | "pods" | "po", name)) => Ok(name),
        Some((kind, _)) => bail!("only pods have containers, not {kind}"),
    }
}

/// How messages name an object: `pod/a`, `networkattachmentdefinition.k8s.cni.cncf.io/b`.
pub(super) fn shown(kind: &Kind, name: &str) -> String {
    let singular = &kind.singular;
    if kind.group.is_empty() {
        format!("{singular}/{name}")
    } else {
        format!("{singular}.{}/{name}", kind.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds::built_in;

    fn kinds() -> Kinds {
        let mut kinds = Kinds::default();
        built_in().iter().for_each(|kind| kinds.add(kind.as_ref().clone()));
        kinds
    }

    fn read(words: &[&str]) -> Result<Vec<String>> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let shown = |target: Target| format!("{}/{}", target.kind.singular, target.name.unwrap_or_default());
        Ok(targets(&kinds(), &words)?.into_iter().map(shown).collect())
    }

    #[test]
    fn kinds_and_names_are_written_as_for_kubectl() {
        assert_eq!(read(&["po"]).unwrap(), ["pod/"]);
        assert_eq!(read(&["Pod", "a", "b"]).unwrap(), ["pod/a", "pod/b"]);
        assert_eq!(read(&["pods,no"]).unwrap(), ["pod/", "node/"]);
        assert_eq!(read(&["pod/a", "no/n"]).unwrap(), ["pod/a", "node/n"]);
    }

    #[test]
    fn what_is_not_understood_says_what_would_be() {
        for (words, says) in [
            (&["pood"][..], "did you mean pod?"),
            (&["widget"], "virtsim api-resources"),
            (&["pod/a", "b"], "KIND NAME"),
            (&["pod/a/b"], "KIND/NAME"),
            (&[], "which kind"),
        ] {
            let error = read(words).unwrap_err().to_string();
            assert!(error.contains(says), "{words:?}: {error}");
        }
        assert_eq!(pod_name("pod/a").unwrap(), "a");
        assert!(pod_name("node/a").is_err());
    }
}
