{{/* A hook's Job: a dict with root, name, hook and args; admin mounts the administrator's certificate. */}}
{{- define "keelson.job" -}}
{{- $root := .root -}}
{{- $name := include "keelson.name" $root -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "keelson.meta" (list $root (printf "-%s" .name) "hooks") | nindent 2 }}
  annotations:
    helm.sh/hook: {{ .hook }}
    helm.sh/hook-weight: {{ eq .hook "test" | ternary "0" "-5" | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: 4
  activeDeadlineSeconds: 600
  template:
    metadata:
      labels:
        {{- include "keelson.labels" $root | nindent 8 }}
        app.kubernetes.io/component: hooks
    spec:
      restartPolicy: Never
      {{- include "keelson.pod" (list $root "hooks") | nindent 6 }}
      {{- if not .anonymous }}
      serviceAccountName: {{ $name }}-hooks
      {{- end }}
      automountServiceAccountToken: {{ not .anonymous }}
      containers:
        - name: keel
          image: {{ include "keelson.image" (list $root "keel") }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - chart
            {{- range .args }}
            - {{ . | quote }}
            {{- end }}
          {{- include "keelson.unprivileged" $root | nindent 10 }}
          resources:
            requests: {cpu: 10m, memory: 32Mi}
            limits: {memory: 128Mi}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- if not .noConfig }}
            - {name: config, mountPath: /config, readOnly: true}
            {{- end }}
            {{- if .admin }}
            - {name: admin, mountPath: /pki, readOnly: true}
            {{- end }}
            {{- if .manifests }}
            - {name: manifests, mountPath: /manifests, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        {{- if not .noConfig }}
        - name: config
          configMap: {name: {{ $name }}-hooks}
        {{- end }}
        {{- if .admin }}
        - name: admin
          secret:
            secretName: {{ $name }}-admin
            defaultMode: 0440
            items:
              - {key: ca.crt, path: ca.crt}
              - {key: tls.crt, path: tls.crt}
              - {key: tls.key, path: tls.key}
              {{- range .nodes }}
              - {key: tokens.{{ . }}, path: tokens/{{ . }}}
              {{- end }}
        {{- end }}
        {{- if .manifests }}
        - name: manifests
          configMap: {name: {{ $name }}-manifests}
        {{- end }}
{{- end -}}
