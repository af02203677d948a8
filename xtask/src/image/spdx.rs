//! The bill of materials, as SPDX 2.3 in JSON: <https://spdx.github.io/spdx-spec/v2.3/>.

use serde_json::{Value, json};

use super::crates::{Crate, Id, Linked};
use super::toolchain::Part;
use super::{CREATED, sha256};
use crate::build::Architecture;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const IMAGE: &str = "SPDXRef-Image";

/// The document for one image. The same content has the same name.
pub(super) fn document(architecture: Architecture, linked: &Linked, parts: &[Part]) -> Value {
    let mut packages = vec![own(IMAGE, "virtnet")];
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE)];
    for (program, ids) in &linked.by_program {
        let this = format!("SPDXRef-Program-{program}");
        packages.push(own(&this, program));
        relationships.push(relation(IMAGE, "CONTAINS", &this));
        relationships.extend(ids.iter().map(|id| relation(&this, "STATIC_LINK", &crate_reference(id))));
        relationships.extend(parts.iter().map(|part| relation(&this, "STATIC_LINK", &part_reference(part))));
    }
    packages.extend(linked.crates.values().map(of_crate));
    packages.extend(parts.iter().map(of_part));
    let name = format!("virtnet-{VERSION}-linux-{}", architecture.name());
    let content = sha256(json!([packages, relationships]).to_string().as_bytes());
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("https://spdx.org/spdxdocs/{name}-{content}"),
        "creationInfo": { "created": CREATED, "creators": ["Tool: cargo xtask image"] },
        "packages": packages,
        "relationships": relationships,
    })
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

fn own(reference: &str, name: &str) -> Value {
    package(reference, name, VERSION, env!("CARGO_PKG_LICENSE"), "NOASSERTION")
}

fn package(reference: &str, name: &str, version: &str, licence: &str, download: &str) -> Value {
    json!({
        "SPDXID": reference,
        "name": name,
        "versionInfo": version,
        "downloadLocation": download,
        "filesAnalyzed": false,
        "licenseConcluded": licence,
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
    })
}

fn of_crate(each: &Crate) -> Value {
    let (name, version) = &each.id;
    // One of ours is in no registry, where another crate may have its name.
    let Some(sha256) = &each.sha256 else {
        return package(&crate_reference(&each.id), name, version, &each.licence, "NOASSERTION");
    };
    // Where it comes from is said by the purl, whatever mirror of the registry served it.
    let mut package = package(&crate_reference(&each.id), name, version, &each.licence, "NOASSERTION");
    if let Some(package) = package.as_object_mut() {
        package.insert("checksums".to_owned(), json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]));
        let purl = format!("pkg:cargo/{name}@{version}");
        let purl = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }]);
        package.insert("externalRefs".to_owned(), purl);
    }
    package
}

fn of_part(part: &Part) -> Value {
    package(&part_reference(part), part.name, &part.version, part.licence, part.home)
}

/// Letters, digits, dots and dashes only.
fn crate_reference((name, version): &Id) -> String {
    format!("SPDXRef-Crate-{name}-{version}").replace(['_', '+'], "-")
}

fn part_reference(part: &Part) -> String {
    format!("SPDXRef-{}", part.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{crates, toolchain};
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_every_crate_of_the_registry_can_be_checked() {
        let linked = crates::linked(Architecture::Amd64).unwrap();
        let parts = toolchain::parts(Architecture::Amd64).unwrap();
        let document = document(Architecture::Amd64, &linked, &parts);
        let packages = document["packages"].as_array().unwrap();
        let known: BTreeSet<&str> =
            packages.iter().map(|package| package["SPDXID"].as_str().unwrap()).collect();
        assert_eq!(known.len(), packages.len(), "two packages have one reference");
        assert_eq!(packages.len(), 1 + 3 + linked.crates.len() + parts.len());
        for reference in &known {
            let tail = reference.strip_prefix("SPDXRef-").unwrap();
            assert!(
                tail.chars().all(|char| char.is_ascii_alphanumeric() || ".-".contains(char)),
                "{reference}"
            );
        }
        for relation in document["relationships"].as_array().unwrap() {
            let to = relation["relatedSpdxElement"].as_str().unwrap();
            assert!(known.contains(to), "nothing is called {to}");
        }
        let rustix = packages.iter().find(|package| package["name"] == "rustix").unwrap();
        assert_eq!(rustix["checksums"][0]["checksumValue"].as_str().unwrap().len(), 64);
        assert!(
            rustix["externalRefs"][0]["referenceLocator"]
                .as_str()
                .unwrap()
                .starts_with("pkg:cargo/rustix@1.")
        );
        // Ours are in no registry.
        let nic = packages.iter().find(|package| package["name"] == "nic").unwrap();
        assert_eq!(nic.get("externalRefs"), None);
    }
}
