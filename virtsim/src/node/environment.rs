//! What a container's process gets: environment and arguments, as the pod describes them.
//!
//! Source: `makeEnvironmentVariables` in `pkg/kubelet/kubelet_pods.go`; expansion:
//! `third_party/forked/golang/expansion`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::api::json::Json;
use crate::api::quantity::Quantity;
use crate::api::store::Store;
use crate::runtime::ContainerConfig;

type Environment = BTreeMap<String, String>;

/// How to run `container` of `pod`, with `given` by device plugins. The error is that of `CreateContainerConfigError`.
///
/// The pod is read with its status, which has the addresses; config maps and secrets come from the store.
pub(super) fn configure(
    store: &Store,
    pod: &Value,
    container: &Value,
    given: &BTreeMap<String, String>,
) -> Result<ContainerConfig, String> {
    let own = environment(store, pod, container)?;
    let mut env: Environment = given.clone();
    let known = own.clone();
    env.extend(own);
    let words = |field: &str| {
        let words = container.items(field).iter().filter_map(Value::as_str);
        words.map(|word| expand(word, &known)).collect::<Vec<_>>()
    };
    let mut argv = words("/command");
    argv.extend(words("/args"));
    if container.items("/command").is_empty() {
        // Arguments alone are for the image's entry point, which nobody knows here.
        argv.clear();
    }
    let working_dir = container.text("/workingDir");
    Ok(ContainerConfig {
        name: container.text("/name").to_owned(),
        argv,
        env,
        working_dir: (!working_dir.is_empty()).then(|| PathBuf::from(working_dir)),
    })
}

fn environment(store: &Store, pod: &Value, container: &Value) -> Result<Environment, String> {
    let mut env = Environment::new();
    for source in container.items("/envFrom") {
        for (field, plural) in [("/configMapRef", "configmaps"), ("/secretRef", "secrets")] {
            if source.pointer(field).is_none() {
                continue;
            }
            let name = source.text(&format!("{field}/name"));
            match store.core(plural, pod.namespace(), name) {
                Some(object) => {
                    let prefix = source.text("/prefix");
                    env.extend(
                        data(&object).into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)),
                    );
                }
                None if source.is_true(&format!("{field}/optional")) => {}
                None => return Err(missing(plural, name)),
            }
        }
    }
    for variable in container.items("/env") {
        let name = variable.text("/name").to_owned();
        let value = match variable.pointer("/valueFrom") {
            Some(source) => match from(store, pod, container, source)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(variable.text("/value"), &env),
        };
        env.insert(name, value);
    }
    Ok(env)
}

/// The value that a `valueFrom` names; none where it is optional and absent.
fn from(store: &Store, pod: &Value, container: &Value, source: &Value) -> Result<Option<String>, String> {
    let path = source.text("/fieldRef/fieldPath");
    if !path.is_empty() {
        return field(pod, path).map(Some).ok_or_else(|| format!("unsupported fieldPath: {path}"));
    }
    let resource = source.text("/resourceFieldRef/resource");
    if !resource.is_empty() {
        return amount(pod, container, source).map(Some);
    }
    for (field, plural) in [("/configMapKeyRef", "configmaps"), ("/secretKeyRef", "secrets")] {
        if source.pointer(field).is_none() {
            continue;
        }
        let (name, key) = (source.text(&format!("{field}/name")), source.text(&format!("{field}/key")));
        let optional = source.is_true(&format!("{field}/optional"));
        let Some(object) = store.core(plural, pod.namespace(), name) else {
            return if optional { Ok(None) } else { Err(missing(plural, name)) };
        };
        return match data(&object).remove(key) {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => {
                let kind = if plural == "secrets" { "Secret" } else { "ConfigMap" };
                Err(format!("couldn't find key {key} in {kind} {}/{name}", pod.namespace()))
            }
        };
    }
    Err("a valueFrom of a kind that is not supported".to_owned())
}

/// The downward API's fields.
fn field(pod: &Value, path: &str) -> Option<String> {
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let texts = match map {
            "metadata.labels" => pod.labels(),
            "metadata.annotations" => pod.annotations(),
            _ => return None,
        };
        return Some(texts.get(key).cloned().unwrap_or_default());
    }
    let all = |list: &str| {
        let ips: Vec<_> = pod.items(list).iter().map(|ip| ip.text("/ip")).collect();
        ips.join(",")
    };
    Some(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "spec.nodeName" => pod.text("/spec/nodeName").to_owned(),
        "spec.serviceAccountName" => pod.text("/spec/serviceAccountName").to_owned(),
        "status.hostIP" => pod.text("/status/hostIP").to_owned(),
        "status.podIP" => pod.text("/status/podIP").to_owned(),
        "status.hostIPs" => all("/status/hostIPs"),
        "status.podIPs" => all("/status/podIPs"),
        _ => return None,
    })
}

fn amount(pod: &Value, container: &Value, source: &Value) -> Result<String, String> {
    let of = source.text("/resourceFieldRef/containerName");
    let all = pod.items("/spec/containers").iter().chain(pod.items("/spec/initContainers"));
    let container = all.into_iter().find(|one| one.text("/name") == of).unwrap_or(container);
    let resource = source.text("/resourceFieldRef/resource");
    let pointer = format!("/resources/{}", resource.replacen('.', "/", 1));
    let quantity = match container.pointer(&pointer) {
        Some(value) => Quantity::of(value).map_err(|error| error.to_string())?,
        None => Quantity::default(),
    };
    // Rounded up, as with the default divisor of 1.
    let whole = quantity.as_whole().or_else(|| {
        let text = quantity.to_string();
        let thousandths: u64 = text.strip_suffix('m')?.parse().ok()?;
        Some(thousandths.div_ceil(1000))
    });
    Ok(whole.unwrap_or_default().to_string())
}

/// What a config map or a secret holds, as text.
fn data(object: &Value) -> Environment {
    let mut texts = object.texts("/data");
    if object.text("/kind") == "Secret" {
        for value in texts.values_mut() {
            let bytes = BASE64_STANDARD.decode(value.as_str()).unwrap_or_default();
            *value = String::from_utf8_lossy(&bytes).into_owned();
        }
        texts.extend(object.texts("/stringData"));
    }
    texts
}

fn missing(plural: &str, name: &str) -> String {
    format!("{} {name:?} not found", plural.trim_end_matches('s'))
}

/// `$(NAME)` becomes the variable's value, `$$` a dollar; what is unknown stays as it is.
fn expand(text: &str, env: &Environment) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        match after.strip_prefix('(').and_then(|after| after.split_once(')')) {
            Some((name, after)) => {
                match env.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::time::Timestamp;
    use serde_json::json;

    fn store() -> Store {
        let mut store = Store::default();
        let now = Timestamp::from_seconds(0);
        for (plural, namespace, object) in [
            ("namespaces", "", json!({"metadata": {"name": "default"}})),
            ("configmaps", "default", json!({"metadata": {"name": "m"}, "data": {"a": "1"}})),
            ("secrets", "default", json!({"metadata": {"name": "s"}, "data": {"b": "c2VjcmV0"}})),
        ] {
            let kind = store.kind("", "v1", plural).unwrap();
            store.create(&kind, namespace, object, now).unwrap();
        }
        store
    }

    fn pod() -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "n"}, "status": {"podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]},
        })
    }

    fn env(variables: Value) -> Result<Environment, String> {
        let container = json!({"name": "c", "env": variables, "resources": {"limits": {"cpu": "1500m"}}});
        configure(&store(), &pod(), &container, &BTreeMap::new()).map(|config| config.env)
    }

    #[test]
    fn values_come_from_the_pod_and_from_other_objects() {
        let from = |source: Value| json!({"name": "V", "valueFrom": source});
        for (source, value) in [
            (json!({"fieldRef": {"fieldPath": "spec.nodeName"}}), "n"),
            (json!({"fieldRef": {"fieldPath": "metadata.labels['app']"}}), "x"),
            (json!({"fieldRef": {"fieldPath": "status.podIPs"}}), "10.1.0.5,fd00::5"),
            (json!({"configMapKeyRef": {"name": "m", "key": "a"}}), "1"),
            (json!({"secretKeyRef": {"name": "s", "key": "b"}}), "secret"),
            (json!({"resourceFieldRef": {"resource": "limits.cpu"}}), "2"),
        ] {
            assert_eq!(env(json!([from(source.clone())])).unwrap()["V"], value, "{source}");
        }
        for (source, error) in [
            (json!({"fieldRef": {"fieldPath": "spec.color"}}), "unsupported fieldPath: spec.color"),
            (json!({"configMapKeyRef": {"name": "x", "key": "a"}}), "configmap \"x\" not found"),
            (json!({"secretKeyRef": {"name": "s", "key": "x"}}), "couldn't find key x in Secret default/s"),
        ] {
            assert_eq!(env(json!([from(source)])).unwrap_err(), error);
        }
        let optional = json!([from(json!({"configMapKeyRef": {"name": "x", "key": "a", "optional": true}}))]);
        assert_eq!(env(optional).unwrap(), Environment::new());
    }

    #[test]
    fn the_pods_own_variables_win_over_those_of_device_plugins_and_are_expanded() {
        let given =
            BTreeMap::from([("A".to_owned(), "plugin".to_owned()), ("B".to_owned(), "plugin".to_owned())]);
        let container = json!({
            "name": "c", "command": ["sh", "-c"], "args": ["echo $(A) $$(A) $(B) $C"],
            "env": [{"name": "A", "value": "own"}, {"name": "D", "value": "$(A)!"}],
            "envFrom": [{"prefix": "M_", "configMapRef": {"name": "m"}}],
        });
        let config = configure(&store(), &pod(), &container, &given).unwrap();
        assert_eq!(config.argv, ["sh", "-c", "echo own $(A) $(B) $C"]);
        for (name, value) in [("A", "own"), ("B", "plugin"), ("D", "own!"), ("M_a", "1")] {
            assert_eq!(config.env[name], value);
        }
    }

    #[test]
    fn arguments_without_a_command_are_for_an_image_that_nobody_has() {
        let container = json!({"name": "c", "args": ["--help"]});
        assert_eq!(configure(&store(), &pod(), &container, &BTreeMap::new()).unwrap().argv, [""; 0]);
    }
}
