{{- /* The labels by which selectors find pods. Argument: a list of the context and the component. */}}
{{- define "tollkey.selector" -}}
app.kubernetes.io/name: tollkey
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* The labels of a resource. Argument: a list of the context and the component. */}}
{{- define "tollkey.labels" -}}
{{ include "tollkey.selector" . }}
app.kubernetes.io/part-of: tollkey
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{- define "tollkey.image" -}}
{{ required "set image.repository to the image that you built" .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The settings of the servers that are not secret, as YAML. */}}
{{- define "tollkey.settings" -}}
{{- $settings := dict "TOLLKEY_LISTEN" "0.0.0.0:8080" "TOLLKEY_METRICS_LISTEN" "0.0.0.0:9090" "TOLLKEY_DRAIN_SECONDS" "5" "TOLLKEY_WORKERS" "4" "TOLLKEY_LOG_FORMAT" "json" }}
{{- range $name, $value := .Values.settings }}
{{- /* Numbers are floats here, whose text can have an exponent. */}}
{{- $_ := set $settings $name (kindIs "float64" $value | ternary (int64 $value | toString) (toString $value)) }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{- define "tollkey.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
# The group of the mounted secrets.
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tollkey.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}
