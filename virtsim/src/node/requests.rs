//! How much of each resource a pod asks for.
//!
//! Source: `k8s.io/component-helpers/resource`, `PodRequests`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::json::Json;
use crate::api::quantity::Quantity;

/// Amounts by the resource's name.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// What a pod must find free on a node: what its containers need at once, or what one of its init containers needs beside
/// the sidecars before it, whichever is more; and one of `pods`.
pub(super) fn of_pod(pod: &Value) -> Amounts {
    let mut sidecars = Amounts::new();
    let mut most = Amounts::new();
    for container in pod.items("/spec/initContainers") {
        let own = of_container(container);
        if is_sidecar(container) {
            add(&mut sidecars, &own);
            at_least(&mut most, &sidecars);
        } else {
            let mut at_once = sidecars.clone();
            add(&mut at_once, &own);
            at_least(&mut most, &at_once);
        }
    }
    let mut together = sidecars;
    for container in pod.items("/spec/containers") {
        add(&mut together, &of_container(container));
    }
    at_least(&mut most, &together);
    add(&mut most, &amounts(pod.map("/spec/overhead")));
    most.insert("pods".to_owned(), Quantity::whole(1));
    most
}

/// An init container that keeps running.
pub(super) fn is_sidecar(container: &Value) -> bool {
    container.text("/restartPolicy") == "Always"
}

/// What a node has, or a list of resources asks for.
pub(super) fn amounts(resources: Option<&serde_json::Map<String, Value>>) -> Amounts {
    let read = |(name, value): (&String, &Value)| Some((name.clone(), Quantity::of(value).ok()?));
    resources.into_iter().flatten().filter_map(read).collect()
}

pub(super) fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let entry = sum.entry(name.clone()).or_default();
        *entry = *entry + *amount;
    }
}

fn of_container(container: &Value) -> Amounts {
    amounts(container.map("/resources/requests"))
}

fn at_least(most: &mut Amounts, these: &Amounts) {
    for (name, amount) in these {
        let entry = most.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(virt: u32) -> Value {
        json!({"resources": {"requests": {"kernel.org/virt": virt.to_string()}}})
    }

    fn virt(pod: &Value) -> Option<u64> {
        of_pod(pod).get("kernel.org/virt").copied().unwrap_or_default().as_whole()
    }

    #[test]
    fn init_containers_take_turns_and_sidecars_stay() {
        let mut sidecar = container(1);
        sidecar.put("/restartPolicy", "Always");
        let pod = |init: Value, apps: Value| json!({"spec": {"initContainers": init, "containers": apps}});
        assert_eq!(
            virt(&pod(json!([container(2), container(3)]), json!([container(1), container(1)]))),
            Some(3)
        );
        assert_eq!(virt(&pod(json!([container(1)]), json!([container(1), container(1)]))), Some(2));
        assert_eq!(virt(&pod(json!([sidecar, container(2)]), json!([container(1)]))), Some(3));
        assert_eq!(virt(&pod(json!([]), json!([{}]))), Some(0));
    }
}
