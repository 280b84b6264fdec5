{{/* The name of the control plane, which begins the names of all objects. */}}
{{- define "keelson.name" -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride }}
{{- else if contains "keelson" .Release.Name -}}{{ .Release.Name }}
{{- else -}}{{ printf "%s-keelson" .Release.Name }}
{{- end -}}
{{- end -}}

{{- define "keelson.labels" -}}
app.kubernetes.io/name: keelson
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that select the pods of a component: a list of the root and the component. */}}
{{- define "keelson.selector" -}}
app.kubernetes.io/name: keelson
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Metadata of a namespaced object: a list of the root, the end of the name, and the component. */}}
{{- define "keelson.meta" -}}
{{- $root := index . 0 -}}
name: {{ include "keelson.name" $root }}{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "keelson.labels" $root | nindent 2 }}
  {{- if index . 2 }}
  app.kubernetes.io/component: {{ index . 2 }}
  {{- end }}
{{- end -}}

{{- define "keelson.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.repository }}/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{/* Whether other members share the stores: 0 with an etcd elsewhere. */}}
{{- define "keelson.members" -}}
{{- if .Values.etcd.servers }}0{{ else }}{{ .Values.replicaCount }}{{ end -}}
{{- end -}}

{{/* host:port of the gRPC API of the apiservers that are ready. */}}
{{- define "keelson.grpc" -}}
{{ include "keelson.name" . }}.{{ .Release.Namespace }}.svc.{{ .Values.outerDomain }}.:6444
{{- end -}}

{{/* Replicas of a service of which one leads: a list of the root and its values. */}}
{{- define "keelson.candidates" -}}
{{- $root := index . 0 -}}{{- $v := index . 1 -}}
{{- if $root.Values.sleep }}0{{ else if gt (int $v.replicas) 0 }}{{ $v.replicas }}{{ else if gt (int $root.Values.replicaCount) 1 }}2{{ else }}1{{ end -}}
{{- end -}}

{{/* Fields that all pods have: a list of the root and the component. */}}
{{- define "keelson.pod" -}}
{{- $root := index . 0 -}}
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "keelson.unprivileged" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "keelson.env" -}}
- {name: KEELSON_OPS_ADDRESS, value: ":9090"}
{{- with .Values.otlp.endpoint }}
- {name: KEELSON_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- define "keelson.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 1
  timeoutSeconds: 4
  failureThreshold: 300
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 5
  timeoutSeconds: 4
livenessProbe:
  httpGet: {path: /healthz, port: ops}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* A volume with the files of a Secret: a list of the root, the end of the Secret's name, and keys whose file is in a directory. */}}
{{- define "keelson.spread" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "keelson.selector" (list $root (index $ 1)) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* URL of the apiservers outside of the cluster, if it is known. */}}
{{- define "keelson.outside" -}}
{{- if .Values.service.outside }}{{ .Values.service.outside }}
{{- else if .Values.ingress.enabled }}https://{{ .Values.ingress.host }}:443
{{- end -}}
{{- end -}}

{{- define "keelson.users" -}}
{{- $users := list -}}
{{- range $name, $u := .Values.kubeconfigs -}}
{{- $user := dict "name" $name "clusterRole" $u.clusterRole -}}
{{- if $u.namespace }}{{ $_ := set $user "namespace" $u.namespace }}{{ end -}}
{{- $users = append $users $user -}}
{{- end -}}
{{ toJson $users }}
{{- end -}}

{{- define "keelson.realNodes" -}}
{{- $names := list -}}
{{- $name := include "keelson.name" . -}}
{{- range $i := until (int .Values.nodes.real.count) -}}
{{- $names = append $names (printf "%s-node-%d" $name $i) -}}
{{- end -}}
{{ toJson $names }}
{{- end -}}

{{/* What `keel chart certificates` reads. */}}
{{- define "keelson.certificates" -}}
{{- $name := include "keelson.name" . -}}
{{- $ns := .Release.Namespace -}}
{{- $svc := printf "%s.%s.svc" $name $ns -}}
{{- $members := printf "*.%s-members.%s.svc" $name $ns -}}
{{- $hosts := concat (list $name (printf "%s.%s" $name $ns) $svc (printf "%s.%s" $svc .Values.outerDomain) $members (printf "%s.%s" $members .Values.outerDomain)) .Values.service.extraHosts -}}
{{- $d := dict
  "name" $name
  "labels" (include "keelson.labels" . | fromYaml)
  "hosts" $hosts
  "server" (printf "https://%s:6443" $svc)
  "outside" (include "keelson.outside" .)
  "loadBalancer" (eq .Values.service.type "LoadBalancer")
  "serviceCIDR" .Values.controlPlane.serviceCIDR
  "clusterDomain" .Values.controlPlane.clusterDomain
  "users" (include "keelson.users" . | fromJsonArray)
  "nodes" (include "keelson.realNodes" . | fromJsonArray)
  "simulated" (gt (len .Values.nodes.simulated) 0) -}}
{{- if and .Values.snapshots.enabled (not .Values.snapshots.existingClaim) -}}
{{- $_ := set $d "snapshots" (dict "size" .Values.snapshots.size "storageClass" .Values.persistence.storageClass) -}}
{{- end -}}
{{- toJson $d -}}
{{- end -}}

{{/* What `keel chart settle` reads. */}}
{{- define "keelson.settle" -}}
{{- $pools := list -}}
{{- range .Values.nodes.simulated -}}
{{- $pools = append $pools (dict "name" .name "count" (int .count)) -}}
{{- end -}}
{{- $d := dict
  "name" (include "keelson.name" .)
  "apiserver" (include "keelson.grpc" .)
  "members" (include "keelson.members" . | int)
  "users" (include "keelson.users" . | fromJsonArray)
  "simulated" $pools
  "nodes" (include "keelson.realNodes" . | fromJsonArray) -}}
{{- if and (eq .Values.service.type "LoadBalancer") (not (include "keelson.outside" .)) -}}
{{- $_ := set $d "certificates" (include "keelson.certificates" . | fromJson) -}}
{{- end -}}
{{ toJson $d }}
{{- end -}}
