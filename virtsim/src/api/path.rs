//! Which object, collection or document a URL's path names.

/// A path of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/api`
    Core,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    Resources(GroupVersion),
    /// `/openapi/v3`
    OpenApi,
    /// `/openapi/v3/apis/GROUP/VERSION`
    OpenApiOf(GroupVersion),
    /// A collection, an object or a subresource.
    Resource(Target),
}

/// API group and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupVersion {
    pub(super) group: String,
    pub(super) version: String,
}

/// What a verb is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) of: GroupVersion,
    pub(super) plural: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
    /// `/watch/` stands before it: the old way to say `?watch=true`.
    pub(super) watch: bool,
}

/// Reads a path; none where there is nothing.
pub(super) fn parse(path: &str) -> Option<Path> {
    let steps: Vec<String> =
        path.split('/').filter(|step| !step.is_empty()).map(unescape).collect::<Option<_>>()?;
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let of =
        |group: &str, version: &str| GroupVersion { group: group.to_owned(), version: version.to_owned() };
    Some(match steps.as_slice() {
        ["version"] => Path::Version,
        ["healthz" | "livez" | "readyz", ..] => Path::Health,
        ["api"] => Path::Core,
        ["apis"] => Path::Groups,
        ["apis", group] => Path::Group((*group).to_owned()),
        ["api", version] => Path::Resources(of("", version)),
        ["apis", group, version] => Path::Resources(of(group, version)),
        ["openapi", "v3"] => Path::OpenApi,
        ["openapi", "v3", "api", version] => Path::OpenApiOf(of("", version)),
        ["openapi", "v3", "apis", group, version] => Path::OpenApiOf(of(group, version)),
        ["api", version, rest @ ..] => Path::Resource(target(of("", version), rest)?),
        ["apis", group, version, rest @ ..] => Path::Resource(target(of(group, version), rest)?),
        _ => return None,
    })
}

fn target(of: GroupVersion, steps: &[&str]) -> Option<Target> {
    let (watch, steps) = match steps {
        ["watch", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (namespace, rest) = match steps {
        // `namespaces/NAME` and `namespaces/NAME/status` are the namespace itself.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, steps),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        _ => (None, steps),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some(name), None),
        [plural, name, subresource] => (plural, Some(name), Some(subresource)),
        _ => return None,
    };
    let owned = |step: &&str| (*step).to_owned();
    Some(Target {
        of,
        plural: owned(plural),
        namespace,
        name: name.map(owned),
        subresource: subresource.map(owned),
        watch,
    })
}

/// Undoes percent-encoding (RFC 3986).
pub(super) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(path: &str) -> (String, Option<String>, Option<String>, Option<String>) {
        match parse(path) {
            Some(Path::Resource(target)) => {
                (target.plural, target.namespace, target.name, target.subresource)
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn every_form_of_a_resource_path_is_read() {
        assert_eq!(named("/api/v1/pods"), ("pods".into(), None, None, None));
        assert_eq!(
            named("/api/v1/namespaces/default/pods/a/status"),
            ("pods".into(), some("default"), some("a"), some("status"))
        );
        assert_eq!(named("/api/v1/namespaces/default"), ("namespaces".into(), None, some("default"), None));
        assert_eq!(named("/api/v1/namespaces"), ("namespaces".into(), None, None, None));
        assert_eq!(
            named("/api/v1/namespaces/default/status"),
            ("namespaces".into(), None, some("default"), some("status"))
        );
        assert_eq!(
            named("/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions/virt%2Dnet1"),
            ("network-attachment-definitions".into(), some("default"), some("virt-net1"), None)
        );
        assert!(matches!(parse("/api/v1/watch/pods"), Some(Path::Resource(Target { watch: true, .. }))));
        assert_eq!(parse("/nothing"), None);
        assert_eq!(parse("/api/v1/nodes/n/status/x"), None);
        assert_eq!(parse("/api/v1/pods/%zz"), None);
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in "(/(api|apis|v1|namespaces|watch|[a-z%]{0,3})){0,8}") {
            let _ = parse(&path);
        }
    }
}
