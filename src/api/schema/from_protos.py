#!/usr/bin/env python3
"""Writes kubernetes.txt anew: from_protos.py API APIMACHINERY REF > kubernetes.txt

API and APIMACHINERY are git directories of kubernetes/api and kubernetes/apimachinery, REF is a branch or
tag of both, such as release-1.36. Numbers and types come from generated.proto, list types from its markers,
names in JSON and what is a pointer from the tags in the Go files beside it.
"""

import re
import subprocess
import sys

API, APIMACHINERY, REF = sys.argv[1:4]

# Name here, repository, folder, apiVersion, the types to begin with.
PACKAGES = [
    ("meta", APIMACHINERY, "pkg/apis/meta/v1", "meta.k8s.io/v1", "DeleteOptions"),
    ("core", API, "core/v1", "v1", "Binding ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume "
     "PersistentVolumeClaim Pod ReplicationController ResourceQuota Secret Service ServiceAccount"),
    ("apps", API, "apps/v1", "apps/v1", "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet"),
    ("authentication", API, "authentication/v1", "authentication.k8s.io/v1",
     "SelfSubjectReview TokenRequest TokenReview"),
    ("authorization", API, "authorization/v1", "authorization.k8s.io/v1", "LocalSubjectAccessReview "
     "SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview"),
    ("autoscaling1", API, "autoscaling/v1", "autoscaling/v1", "HorizontalPodAutoscaler Scale"),
    ("autoscaling2", API, "autoscaling/v2", "autoscaling/v2", "HorizontalPodAutoscaler"),
    ("batch", API, "batch/v1", "batch/v1", "CronJob Job"),
    ("coordination", API, "coordination/v1", "coordination.k8s.io/v1", "Lease"),
    ("discovery", API, "discovery/v1", "discovery.k8s.io/v1", "EndpointSlice"),
    ("events", API, "events/v1", "events.k8s.io/v1", "Event"),
    ("networking", API, "networking/v1", "networking.k8s.io/v1", "Ingress IngressClass NetworkPolicy"),
    ("node", API, "node/v1", "node.k8s.io/v1", "RuntimeClass"),
    ("policy", API, "policy/v1", "policy/v1", "Eviction PodDisruptionBudget"),
    ("resource", API, "resource/v1", "resource.k8s.io/v1",
     "DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice"),
    ("scheduling", API, "scheduling/v1", "scheduling.k8s.io/v1", "PriorityClass"),
    ("storage", API, "storage/v1", "storage.k8s.io/v1", "CSIDriver CSINode CSIStorageCapacity StorageClass "
     "VolumeAttachment VolumeAttributesClass"),
]
SCALARS = {"string": "string", "bool": "bool", "bytes": "bytes"} | dict.fromkeys(
    ["int32", "int64", "uint32", "uint64"], "int")
# Messages that are one value in JSON.
VALUES = {"Time": "time", "MicroTime": "microtime", "FieldsV1": "fields", "Quantity": "quantity",
          "IntOrString": "intorstring", "RawExtension": "raw", "ExtraValue": "strings"}
HEAD = """\
# Kubernetes 1.36: the fields of its types, from the .proto files and markers of kubernetes/api and
# kubernetes/apimachinery. The form stands in mod.rs; from_protos.py writes it."""


def git(repository, *arguments):
    return subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=True).stdout


def messages(text):
    """{name: (comments, [(number, name, "optional" | "repeated" | "map", type, comments)])}"""
    found, name, comments = {}, None, []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comments.append(line[2:].strip())
        elif name is None and (match := re.match(r"message (\w+) \{", line)):
            name = match[1]
            found[name] = (comments, [])
            comments = []
            name = None if line.endswith("}") else name
        elif line == "}":
            name, comments = None, []
        elif name and (match := re.match(
                r"(optional|repeated|map)(?:<\w+, ([\w.]+)>)?\s+(?:([\w.]+)\s+)?(\w+) = (\d+)", line)):
            kind = (match[2] or match[3]).lstrip(".")
            found[name][1].append((int(match[5]), match[4], match[1], kind, comments))
            comments = []
    return found


def tags(texts):
    """{struct: {number: (name or None if embedded, Go type, JSON tag)}}"""
    found = {}
    for text in texts:
        for struct in re.finditer(r"^type (\w+) struct \{(.*?)^\}", text, re.M | re.S):
            fields = found.setdefault(struct[1], {})
            for line in struct[2].splitlines():
                field = re.match(r"^\s*(?:(\w+)\s+)?([*\[\]\w.]+)\s+`(.*)`", line)
                number = field and re.search(r'protobuf:"\w+,(\d+),', field[3])
                json = field and re.search(r'json:"([^"]*)"', field[3])
                if number and json:
                    fields[int(number[1])] = (field[1], field[2], json[1])
    return found


PROTO, GO, NAMES = {}, {}, {}
for alias, repository, folder, *_ in PACKAGES:
    files = git(repository, "ls-tree", "--name-only", REF, folder + "/").split()
    sources = [f for f in files if f.endswith(".go") and not re.search(r"_test|generated|zz_", f)]
    PROTO[alias] = messages(git(repository, "show", f"{REF}:{folder}/generated.proto"))
    GO[alias] = tags(git(repository, "show", f"{REF}:{f}") for f in sources)
    owner = "apimachinery" if repository == APIMACHINERY else "api"
    NAMES[f"k8s.io.{owner}.{folder.replace('/', '.')}"] = alias


def resolve(alias, kind):
    """A word, (package, message), or None for what no package here has."""
    package, _, name = kind.rpartition(".")
    if kind in SCALARS or name in VALUES:
        return SCALARS.get(kind) or VALUES[name]
    return (alias if not package else NAMES[package], name) if not package or package in NAMES else None


def words(alias, message, number, name, mode, kind, comments):
    go_name, go_type, tag = GO[alias][message].get(number, ("", "", name + ",omitempty"))
    json_name, _, options = tag.partition(",")
    marks = lambda key: re.findall(rf"^\+{key}=(.*)$", "\n".join(comments), re.M)
    target = resolve(alias, kind)
    if isinstance(target, tuple):
        target = target[1] if target[0] == alias else ".".join(target)
    prefix = {"repeated": "[]", "map": "{}"}.get(mode, "")
    is_inline = go_name is None and not json_name
    out = [str(number), name if is_inline else json_name, prefix + target]
    if is_inline:
        out.append("inline")
    if mode == "optional" and target in SCALARS.values() and (go_type[:1] == "*" or "omitempty" not in options):
        out.append("zero")
    strategy, merge_key, keys = marks("patchStrategy"), marks("patchMergeKey"), marks("listMapKey")
    is_merged = bool(strategy) and strategy[0].startswith("merge")
    if mode == "repeated":
        list_type = marks("listType")
        if list_type == ["map"]:
            out.append("map:" + ",".join(keys))
        elif not list_type and is_merged and merge_key:
            out.append("map:" + merge_key[0])
        elif list_type == ["set"] or (not list_type and is_merged):
            out.append("set")
        if is_merged:
            out.append("merge:" + merge_key[0] if merge_key else "union")
    else:
        if strategy and "retainKeys" in strategy[0]:
            out.append("retainKeys")
        out += [word for word in ("atomic", "granular") if word in marks("mapType") + marks("structType")]
    default = marks("default")
    if name == "protocol" and default:
        out.append("default:" + default[0].strip('"'))
    return out


needed, waiting = set(), [(package[0], root) for package in PACKAGES for root in package[4].split()]
while waiting:
    at = waiting.pop()
    if at not in needed:
        needed.add(at)
        kinds = (resolve(at[0], field[3]) for field in PROTO[at[0]][at[1]][1])
        waiting += [kind for kind in kinds if isinstance(kind, tuple)]

print(HEAD)
for alias, _, _, api_version, _ in PACKAGES:
    print(f":{alias} {api_version}")
    for message in sorted(name for package, name in needed if package == alias):
        comments, fields = PROTO[alias][message]
        print(message + (" atomic" if "+structType=atomic" in comments else ""))
        for field in fields:
            if resolve(alias, field[3]):
                print("", *words(alias, message, *field))
