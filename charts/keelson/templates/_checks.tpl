{{/* Refuses by name what the schema cannot: it sees one value at a time, and not the cluster. */}}
{{- define "keelson.checks" -}}
{{- $name := include "keelson.name" . -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf "the name %q has %d characters; it may have 40: use a shorter release name or fullnameOverride" $name (len $name)) -}}
{{- end -}}
{{- if and (not .Values.etcd.servers) (not (has (int .Values.replicaCount) (list 1 3 5))) -}}
{{- fail (printf "replicaCount %d: members vote, so their number is 1, 3 or 5; an even number tolerates no more failures than one fewer" (int .Values.replicaCount)) -}}
{{- end -}}
{{- if and (not .Values.persistence.enabled) (gt (int .Values.replicaCount) 1) (not .Values.etcd.servers) -}}
{{- fail "persistence.enabled=false: more than one apiserver needs volumes" -}}
{{- end -}}
{{- if and .Values.sleep (not .Values.persistence.enabled) (not .Values.etcd.servers) -}}
{{- fail "sleep: without persistence.enabled the state would be lost" -}}
{{- end -}}
{{- if and .Values.etcd.servers (or .Values.restore.claim .Values.snapshots.enabled) -}}
{{- fail "etcd.servers: snapshots of an etcd elsewhere are made and restored there; set neither restore nor snapshots" -}}
{{- end -}}
{{- if and .Values.restore.claim (not .Values.restore.file) -}}
{{- fail "restore.claim needs restore.file, the path of the snapshot in it" -}}
{{- end -}}
{{- if and .Values.restore.file (not .Values.restore.claim) -}}
{{- fail "restore.file needs restore.claim, the claim that has it" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host" -}}
{{- end -}}
{{- $f := .Values.faultInjection -}}
{{- if and (or $f.killEvery $f.pauseEvery $f.latency) (ne $f.acknowledge "i-want-faults") -}}
{{- fail "faultInjection breaks the control plane on purpose: set faultInjection.acknowledge to i-want-faults" -}}
{{- end -}}
{{- if gt (int .Values.nodes.real.count) 0 -}}
{{- if ne .Values.nodes.real.allowHostAccess "yes" -}}
{{- fail "nodes.real.count: the pods of real nodes can take over their host; set nodes.real.allowHostAccess to yes" -}}
{{- end -}}
{{- range list "SYS_ADMIN" "NET_ADMIN" -}}
{{- if not (has . $.Values.nodes.real.capabilities) -}}
{{- fail (printf "nodes.real.capabilities: a node cannot run containers without %s" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $pools := dict -}}
{{- range .Values.nodes.simulated -}}
{{- if hasKey $pools .name -}}
{{- fail (printf "nodes.simulated: two groups are called %s" .name) -}}
{{- end -}}
{{- $_ := set $pools .name true -}}
{{- end -}}
{{- if and .Values.persistence.enabled .Values.persistence.storageClass (lookup "v1" "Namespace" "" "kube-system") -}}
{{- if not (lookup "storage.k8s.io/v1" "StorageClass" "" .Values.persistence.storageClass) -}}
{{- fail (printf "persistence.storageClass: the cluster has no storage class %q" .Values.persistence.storageClass) -}}
{{- end -}}
{{- end -}}
{{- $set := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if and $set (not .Values.sleep) (not .Values.etcd.servers) (eq (int $set.spec.replicas) 0) -}}
{{- $asleep := index ($set.metadata.annotations | default dict) "keelson.dev/replicas" | default "1" -}}
{{- if ne (int $asleep) (int .Values.replicaCount) -}}
{{- fail (printf "replicaCount %d: the control plane went to sleep with %s members; wake it with replicaCount=%s, then scale it" (int .Values.replicaCount) $asleep $asleep) -}}
{{- end -}}
{{- end -}}
{{- end -}}
