{{- define "virtnet.selector" -}}
app.kubernetes.io/name: virtnet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: virtdp
{{- end -}}

{{- define "virtnet.labels" -}}
{{ include "virtnet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "virtnet.account" -}}
{{ .Release.Name }}-{{ if .Values.meta.enabled }}virt-meta{{ else }}virtdp{{ end }}
{{- end -}}

{{- define "virtnet.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  type: RuntimeDefault
{{- /* The last, so that one may be added. */}}
capabilities:
  drop: ["ALL"]
{{- end -}}

{{- define "virtnet.probe" -}}
- virtdp
- probe
- --kubelet-dir={{ .Values.node.kubeletDir }}
{{- if eq .Values.registration "plugins-registry" }}
- --registration=plugins-registry
{{- end }}
{{- end -}}

{{- define "virtnet.install" -}}
- --host=/host
- --cni-bin-dir={{ .Values.node.cniBinDir }}
{{- if .Values.meta.enabled }}
- --cni-conf-dir={{ .Values.node.cniConfDir }}
- --meta
- --kubelet-dir={{ .Values.node.kubeletDir }}
- --wait={{ .Values.meta.waitSeconds }}
{{- if .Values.meta.namespaceIsolation }}
- --namespace-isolation
{{- end }}
{{- end }}
{{- end -}}

{{- define "virtnet.installMounts" -}}
- name: cni-bin
  mountPath: /host{{ .Values.node.cniBinDir }}
{{- if .Values.meta.enabled }}
- name: cni-conf
  mountPath: /host{{ .Values.node.cniConfDir }}
{{- end }}
{{- end -}}
