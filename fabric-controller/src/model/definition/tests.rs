//! The service file, right and wrong.

use super::*;
use crate::model::size::MIB;

const SHOP: &str = r#"name = "shop"

[sizes.tiny]
vcpus = 1
memory = "128MiB"

[[role]]
name = "web"
kind = "web"
size = "tiny"
instances = 2
image = "guest-os"
package = "hello-web"
command = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/role/web"]
environment = { GREETING = "hello" }
settings = { colour = "blue" }
stop_grace = "5s"
startup_grace = "10s"
user = 1000

[[role.endpoint]]
name = "http"
protocol = "http"
port = 80
target_port = 8080

[role.liveness]
http = { port = 8080, path = "/" }
period = "2s"
timeout = "1s"
failure_threshold = 3
success_threshold = 1

[role.readiness]
tcp = { port = 8080 }

[role.restart]
policy = "always"
backoff_initial = "200ms"
backoff_max = "30s"
"#;

#[test]
fn a_whole_file_is_understood() {
    let shop = parse(SHOP, "service.toml").unwrap();
    let web = &shop.roles[0];
    assert_eq!(shop.name.as_str(), "shop");
    assert_eq!(
        web.size,
        Size {
            vcpus: 1,
            memory_bytes: 128 * MIB,
            cpu_weight: 0,
        }
    );
    assert_eq!(web.instances, 2);
    assert_eq!(web.role.command[1], "httpd");
    assert_eq!(web.role.environment["GREETING"], "hello");
    assert_eq!(web.endpoints[0].target_port, 8080);
    let liveness = web.role.liveness.as_ref().unwrap();
    assert_eq!(
        liveness.check,
        Check::Http {
            port: 8080,
            path: "/".to_owned()
        }
    );
    assert_eq!(web.role.readiness.as_ref().unwrap().check, Check::Tcp(8080));
    assert_eq!(web.role.restart, RestartPolicy::default());
}

#[test]
fn what_is_left_out_has_a_default() {
    let text =
        "name = \"a\"\n[[role]]\nname = \"b\"\nkind = \"vm\"\nsize = \"Small\"\nimage = \"os\"\n";
    let role = &parse(text, "").unwrap().roles[0];
    assert_eq!((role.instances, role.role.user), (1, 1000));
    assert_eq!(role.role.stop_grace, Duration::from_secs(5));
    assert!(role.role.command.is_empty() && role.role.liveness.is_none());
}

/// What is put for what, and what the error says.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "name = \"shop\"",
        "name = \"Shop\"",
        ":1: name: \"Shop\" is not a service name: 1 to 63",
    ),
    ("name = \"shop\"", "", "missing field `name`"),
    (
        "size = \"tiny\"",
        "size = \"Smal\"",
        ":10: role \"web\": size \"Smal\" is not known; sizes are ExtraSmall, Small, Medium, Large, ExtraLarge, A6, A7, tiny",
    ),
    (
        "instances = 2",
        "instances = -1",
        ":11: role \"web\": instances -1 is out of range; it must be 0 to 1000",
    ),
    (
        "instances = 2",
        "instanes = 2",
        ":11: unknown field `instanes`, expected one of",
    ),
    (
        "instances = 2",
        "instances = \"2\"",
        ":11: invalid type: string \"2\", expected i64",
    ),
    (
        "image = \"guest-os\"",
        "image = \"../os\"",
        ":12: role \"web\": image: \"../os\" is not an image or package name",
    ),
    (
        "image = \"guest-os\"",
        "image = \"sha256:12\"",
        ":12: role \"web\": image: \"sha256:12\" is not a digest",
    ),
    ("image = \"guest-os\"\n", "", "missing field `image`"),
    (
        "kind = \"web\"",
        "kind = \"webb\"",
        ":9: role \"web\": kind \"webb\" is not known; it is one of \"web\", \"worker\", \"vm\"",
    ),
    (
        "memory = \"128MiB\"",
        "memory = \"128Mibble\"",
        ":5: size \"tiny\": memory \"128Mibble\" is not a size, such as",
    ),
    (
        "memory = \"128MiB\"",
        "memory = \"1000000\"",
        ":5: size \"tiny\": memory \"1000000\" is not allowed; it must be 32MiB to 256GiB, in whole MiB",
    ),
    (
        "vcpus = 1",
        "vcpus = 9",
        ":4: size \"tiny\": vcpus 9 is out of range; it must be 1 to 8",
    ),
    (
        "[sizes.tiny]",
        "[sizes.Small]",
        ":3: size \"Small\": this is one of Azure's sizes",
    ),
    (
        "stop_grace = \"5s\"",
        "stop_grace = \"5 apples\"",
        ":17: role \"web\": stop_grace \"5 apples\" is not a duration, such as",
    ),
    (
        "stop_grace = \"5s\"",
        "stop_grace = \"5days\"",
        ":17: role \"web\": stop_grace \"5days\" is out of range; it must be 0s to 1h",
    ),
    (
        "user = 1000",
        "user = 0",
        ":19: role \"web\": user 0 is out of range; it must be 1 to",
    ),
    (
        "GREETING",
        "FABRIC_ROLE",
        ":15: role \"web\": environment: \"FABRIC_ROLE\" is the fabric's own",
    ),
    (
        "GREETING =",
        "\"1 X\" =",
        ":15: role \"web\": environment: \"1 X\" is not a variable's name",
    ),
    (
        "port = 80\n",
        "port = 70000\n",
        ":24: role \"web\": endpoint \"http\": port 70000 is out of range",
    ),
    (
        "path = \"/\"",
        "path = \"a b\"",
        ":28: role \"web\": liveness: path \"a b\" is not a path",
    ),
    (
        "tcp = { port = 8080 }",
        "",
        ":34: role \"web\": readiness: nothing is checked; give one of http, tcp and exec",
    ),
    (
        "tcp = { port = 8080 }",
        "tcp = { port = 1 }\nexec = [\"a\"]",
        "more than one thing is checked",
    ),
    (
        "tcp = { port = 8080 }",
        "exec = []",
        ":35: role \"web\": readiness: exec names no program",
    ),
    (
        "policy = \"always\"",
        "policy = \"sometimes\"",
        ":38: role \"web\": restart: policy \"sometimes\" is not known",
    ),
    (
        "backoff_max = \"30s\"",
        "backoff_max = \"100ms\"",
        ":40: role \"web\": restart: backoff_max 100ms is less than backoff_initial 200ms",
    ),
    (
        "command = [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/role/web\"]\n",
        "",
        ":8: role \"web\": command is missing; only a role of kind \"vm\"",
    ),
    (
        "[[role]]",
        "[[rol]]",
        "unknown field `rol`, expected one of `name`, `sizes`, `role`",
    ),
    ("kind = \"web\"", "kind = web", ":9: "),
];

#[test]
fn a_wrong_file_is_refused_with_line_value_and_rule() {
    for (from, to, expected) in WRONG {
        assert!(SHOP.contains(from), "{from:?} is not in the file");
        let error = parse(&SHOP.replacen(from, to, 1), "service.toml")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("service.toml:"), "{error}");
        assert!(
            error.contains(expected),
            "{to:?}\n  gives    {error}\n  expected {expected}"
        );
    }
}

#[test]
fn all_problems_are_told_at_once_by_line() {
    let text = SHOP
        .replace("size = \"tiny\"", "size = \"x\"")
        .replace("vcpus = 1", "vcpus = 0");
    let error = parse(&text, "a.toml").unwrap_err();
    assert_eq!(
        error
            .problems
            .iter()
            .map(|problem| problem.line)
            .collect::<Vec<_>>(),
        [4, 10]
    );
    assert_eq!(error.to_string().lines().count(), 2);
}

#[test]
fn a_name_or_a_port_is_given_once() {
    let role = &SHOP[SHOP.find("[[role]]").unwrap()..];
    let error = parse(&format!("{SHOP}\n{role}"), "a.toml")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there is another role of that name"),
        "{error}"
    );
    assert!(
        error.contains("port 80 is taken by another endpoint"),
        "{error}"
    );
}

#[test]
fn an_instance_id_that_would_be_too_long_is_refused() {
    let text = SHOP.replacen("\"shop\"", &format!("{:?}", "s".repeat(60)), 1);
    let error = parse(&text, "a.toml").unwrap_err().to_string();
    assert!(error.contains("would be longer than 63"), "{error}");
}

#[test]
fn a_huge_file_is_refused_unread() {
    let error = parse(&"#".repeat(LONGEST_FILE + 1), "a.toml")
        .unwrap_err()
        .to_string();
    assert!(error.contains("the most is 262144"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_is_a_panic(text in "\\PC{0,200}", at in 0usize..900) {
        let _ = parse(&text, "a.toml");
        let mut at = at.min(SHOP.len());
        while !SHOP.is_char_boundary(at) { at -= 1; }
        let _ = parse(&format!("{}{text}{}", &SHOP[..at], &SHOP[at..]), "a.toml");
    }
}

#[test]
fn how_a_service_is_updated_is_said_for_all_roles_and_for_one() {
    let update = "[update]\nbake = \"1m\"\non_failure = \"rollback\"\nupgrade_domains = 3\n";
    let text = format!("{SHOP}{update}");
    let shop = parse(&text, "service.toml").unwrap();
    assert_eq!(shop.policy.bake, Duration::from_secs(60));
    assert_eq!(
        shop.policy.on_failure,
        crate::model::update::OnFailure::Rollback
    );
    let web = &shop.roles[0];
    assert_eq!((web.upgrade_domains, web.fault_domains), (3, 2));
    let text = text.replace("user = 1000", "upgrade_domains = 7");
    assert_eq!(parse(&text, "f").unwrap().roles[0].upgrade_domains, 7);
}

#[test]
fn a_size_takes_resources_of_the_operators_own() {
    let with = |resources: &str| {
        let size = format!("memory = \"128MiB\"\nresources = {resources}");
        assert!(SHOP.contains("memory = \"128MiB\""));
        parse(&SHOP.replace("memory = \"128MiB\"", &size), "f")
    };
    let role = with("{ gpu = 1, \"big dongle\" = 2 }")
        .unwrap()
        .roles
        .remove(0);
    assert_eq!(role.resources.to_string(), "2 big dongle and 1 gpu");
    assert!(parse(SHOP, "f").unwrap().roles[0].resources.is_empty());
    let kinds: Vec<_> = (0..17).map(|kind| format!("k{kind} = 1")).collect();
    for (resources, said) in [
        (
            "{ gpu = 0 }",
            "resources: \"gpu\" 0 is out of range; it must be 1 to 1000000",
        ),
        ("{ gpu = -1 }", "resources: \"gpu\" -1 is out of range"),
        (
            "{ \"\" = 1 }",
            "resources: \"\" is no name; names have 1 to 255 characters",
        ),
        (
            &*format!("{{ {} }}", kinds.join(", ")),
            "resources: there are more than 16",
        ),
    ] {
        let error = with(resources).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_role_says_which_nodes_it_is_for_and_how_it_is_spread() {
    let web = |keys: &str| {
        let text = SHOP.replace("user = 1000", keys);
        parse(&text, "f").unwrap().roles.remove(0)
    };
    let plain = web("");
    assert!(plain.nodes.is_empty());
    assert_eq!(plain.spread, Spreading::Preferred);
    let picky = web(
        "kvm = \"hardware\"\nspread = \"strict\"\nfault_domains = 3\n\
         node_labels = { disk = \"nvme\", row = \"4\" }",
    );
    assert_eq!(picky.nodes.kvm, Some(Kvm::Hardware));
    assert_eq!(picky.nodes.to_string(), "disk=nvme, row=4, hardware KVM");
    assert_eq!((picky.spread, picky.fault_domains), (Spreading::Strict, 3));
}

#[test]
fn what_is_wrong_about_updates_and_sets_is_told_with_the_rule() {
    for (key, said) in [
        (
            "upgrade_domains = 0",
            "upgrade_domains 0 is out of range; it must be 1 to 20",
        ),
        (
            "settings_change = \"x\"",
            "settings_change \"x\" is not known; it is one of",
        ),
        (
            "os_updates = \"x\"",
            "os_updates \"x\" is not known; it is one of",
        ),
        (
            "spread = \"even\"",
            "spread \"even\" is not known; it is one of \"preferred\", \"strict\"",
        ),
        (
            "kvm = \"nested\"",
            "f:19: role \"web\": kvm \"nested\" is not known; it is one of \"hardware\", \
             \"interpreted\"",
        ),
        (
            "node_labels = { disk = \"\" }",
            "f:19: role \"web\": node_labels: \"\" can be no node's; keys and values have 1 to 255",
        ),
        (
            "availability_set = \"db\"",
            "availability_set is for roles of kind \"vm\"",
        ),
    ] {
        let error = parse(&SHOP.replace("user = 1000", key), "f").unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let update = format!("{SHOP}[update]\ntimeout = \"0s\"\n");
    let error = parse(&update, "f").unwrap_err().to_string();
    assert!(
        error.contains("update: timeout \"0s\" is out of range"),
        "{error}"
    );
}
