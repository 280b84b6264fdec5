{{/* A Deployment of a service of which one replica leads: a dict with root, component, values, image, args, mounts and volumes. */}}
{{- define "keelson.elected" -}}
{{- $root := .root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "keelson.meta" (list $root (printf "-%s" .component) .component) | nindent 2 }}
spec:
  replicas: {{ include "keelson.candidates" (list $root .values) }}
  revisionHistoryLimit: 2
  selector:
    matchLabels:
      {{- include "keelson.selector" (list $root .component) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "keelson.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
    spec:
      {{- include "keelson.pod" (list $root .component) | nindent 6 }}
      automountServiceAccountToken: false
      {{- include "keelson.spread" (list $root .component) | nindent 6 }}
      containers:
        - name: {{ .component }}
          image: {{ include "keelson.image" (list $root .component) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - --identity=/pki
            - --apiserver={{ include "keelson.grpc" $root }}
            - --log-level={{ $root.Values.controlPlane.logLevel }}
            - --log-format={{ $root.Values.controlPlane.logFormat }}
            {{- range .args }}
            - {{ . }}
            {{- end }}
            {{- range .values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            {{- include "keelson.env" $root | nindent 12 }}
          ports:
            - {name: ops, containerPort: 9090}
          {{- include "keelson.probes" $root | nindent 10 }}
          {{- include "keelson.unprivileged" $root | nindent 10 }}
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          volumeMounts:
            - {name: pki, mountPath: /pki, readOnly: true}
            {{- range .scratch }}
            - {name: scratch, mountPath: {{ . }}}
            {{- end }}
      volumes:
        - name: pki
          secret: {secretName: {{ include "keelson.name" $root }}-{{ .component }}, defaultMode: 0440}
        {{- if .scratch }}
        - name: scratch
          emptyDir: {}
        {{- end }}
{{- end -}}
