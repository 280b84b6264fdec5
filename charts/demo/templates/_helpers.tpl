{{/* Metadata: a list of the root and the component. */}}
{{- define "demo.meta" -}}
{{- $root := index . 0 -}}
name: {{ $root.Release.Name }}-{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  {{- include "demo.selector" . | nindent 2 }}
{{- end -}}

{{- define "demo.selector" -}}
app.kubernetes.io/name: demo
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "demo.image" -}}
image: {{ (index . 0).Values.image.repository }}/{{ index . 1 }}:{{ (index . 0).Values.image.tag | default (index . 0).Chart.AppVersion }}
imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
{{- end -}}

{{/* The password: the given one, the one that is there, or a new one. */}}
{{- define "demo.password" -}}
{{- $old := lookup "v1" "Secret" .Release.Namespace (printf "%s-database" .Release.Name) -}}
{{- if .Values.postgres.password }}{{ .Values.postgres.password }}
{{- else if $old }}{{ index $old.data "password" | b64dec }}
{{- else }}{{ randAlphaNum 24 }}
{{- end -}}
{{- end -}}
