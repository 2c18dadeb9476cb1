{{- define "mtgr.labels" -}}
app.kubernetes.io/name: mtgr
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "mtgr.selector" -}}
app.kubernetes.io/name: mtgr
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "mtgr.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "mtgr.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mtgr.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "mtgr.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "mtgr.models" -}}
{{- $model := dict "package" (printf "/engines/packages/%s" .package) "engine" .root.Values.engine.kind }}
{{- if .root.Values.triton.enabled }}
{{- $host := printf "%s-triton" .root.Release.Name }}
{{- $addresses := dict "triton" (list (printf "%s:8001" $host)) "triton_http" (list (printf "%s:8000" $host)) }}
{{- $model = merge $model (dict "backend" "triton") $addresses }}
{{- end }}
{{- dict "home" $model | toJson }}
{{- end }}

{{- define "mtgr.volume" -}}
- name: engines
{{- if eq .Values.engine.delivery "volume" }}
  persistentVolumeClaim:
    claimName: {{ .Values.engine.volume.existingClaim | default (printf "%s-engines" .Release.Name) }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "mtgr.fetch" -}}
- name: fetch
  image: {{ .Values.engine.objectStore.image }}
  command: [aws, s3, sync, --only-show-errors, {{ .Values.engine.objectStore.url | quote }}, /engines]
  env: [{name: HOME, value: /tmp}]
  {{- with .Values.engine.objectStore.existingSecret }}
  envFrom: [{secretRef: {name: {{ . }}}}]
  {{- end }}
  {{- include "mtgr.container" . | nindent 2 }}
  volumeMounts: [{name: engines, mountPath: /engines}, {name: tmp, mountPath: /tmp}]
{{- end }}

{{- define "mtgr.redis" -}}
- name: MTGR_REDIS_URL
{{- if .Values.redis.embedded }}
  value: redis://{{ .Release.Name }}-redis:6379
{{- else if .Values.redis.existingSecret }}
  valueFrom:
    secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: {{ .Values.redis.secretKey }}}
{{- else }}
  value: {{ required "redis.url: needed, or redis.existingSecret, or redis.embedded for a trial" .Values.redis.url | quote }}
{{- end }}
{{- end }}

{{- define "mtgr.scaler" -}}
{{- $scale := .scaling }}
{{- if eq $scale.kind "keda" }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  labels: {{- include "mtgr.labels" .root | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ .name }}}
  minReplicaCount: {{ $scale.minReplicas }}
  maxReplicaCount: {{ $scale.maxReplicas }}
  triggers:
    - type: prometheus
      metricType: Value
      metadata:
        serverAddress: http://prometheus-operated.{{ .root.Values.networkPolicy.monitoringNamespace }}:9090
        query: {{ .query | quote }}
        threshold: {{ divf $scale.queueMs 1000 | quote }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  labels: {{- include "mtgr.labels" .root | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .name }}}
  minReplicas: {{ $scale.minReplicas }}
  maxReplicas: {{ $scale.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $scale.cpuPercent }}}}
    {{- if .podMetric }}
    - type: Pods
      pods:
        metric: {name: {{ .podMetric }}}
        target: {type: AverageValue, averageValue: {{ printf "%vm" $scale.queueMs | quote }}}
    {{- end }}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 300}
{{- end }}
{{- end }}

{{- define "mtgr.gateway" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  labels:
    {{- include "mtgr.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if not .scaled }}
  replicas: {{ .replicas }}
  {{- end }}
  selector:
    matchLabels: {{- include "mtgr.selector" . | nindent 6 }}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata:
      labels: {{- include "mtgr.selector" . | nindent 8 }}
      annotations:
        checksum/settings: {{ toJson .root.Values.gateway.settings | sha256sum }}
    spec:
      {{- include "mtgr.pod" (dict "user" 10001) | nindent 6 }}
      # preStop, then what the gateway may take to finish what it has accepted
      terminationGracePeriodSeconds: {{ add 10 (.root.Values.gateway.settings.drain_s | default 20) }}
      {{- include "mtgr.spread" . | nindent 6 }}
      {{- with .root.Values.gateway.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if eq .root.Values.engine.delivery "objectStore" }}
      initContainers: {{- include "mtgr.fetch" .root | nindent 8 }}
      {{- end }}
      containers:
        - name: gateway
          image: {{ .root.Values.gateway.image }}
          args: [serve]
          ports: [{name: http, containerPort: 8000}]
          envFrom:
            - configMapRef: {name: {{ .root.Release.Name }}-gateway}
            {{- with .root.Values.gateway.existingSecret }}
            - secretRef: {name: {{ . }}}
            {{- end }}
          env:
            - name: MTGR_MODELS
              value: {{ include "mtgr.models" . | quote }}
            {{- include "mtgr.redis" .root | nindent 12 }}
          startupProbe:
            httpGet: {path: /health/ready, port: http}
            periodSeconds: 2
            failureThreshold: 150
          readinessProbe:
            httpGet: {path: /health/ready, port: http}
            periodSeconds: 2
          livenessProbe:
            httpGet: {path: /health/live, port: http}
            periodSeconds: 10
            failureThreshold: 3
          # Endpoints forget the pod before it stops to accept.
          lifecycle: {preStop: {sleep: {seconds: 5}}}
          resources: {{- toYaml .root.Values.gateway.resources | nindent 12 }}
          {{- include "mtgr.container" . | nindent 10 }}
          volumeMounts:
            - {name: engines, mountPath: /engines, readOnly: true}
            - {name: work, mountPath: /var/lib/mtgr}
            - {name: tmp, mountPath: /tmp}
      volumes:
        {{- include "mtgr.volume" .root | nindent 8 }}
        - {name: work, emptyDir: {}}
        - {name: tmp, emptyDir: {}}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  labels:
    {{- include "mtgr.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  selector: {{- include "mtgr.selector" . | nindent 4 }}
  ports: [{name: http, port: 80, targetPort: http}]
{{- end }}
