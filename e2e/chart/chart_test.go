// Package chart_test renders charts/keelson with the real helm and checks what each value does. The
// tests of an installed chart are in the package install beside this one.
package chart_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"keelson.dev/e2e/internal/cluster"
)

const (
	chart = "../../charts/keelson"
	demo  = "../../charts/demo"
)

// helm runs helm and returns its output.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	bin, err := cluster.Programs()
	if err != nil {
		t.Fatal(err)
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "runtime", "helm"), args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, &problems)
	}
	return out.String(), nil
}

// object is an object of a rendered chart.
type object map[string]any

// at returns what a path of keys and numbers leads to, or nil.
func (o object) at(path string) any {
	var here any = map[string]any(o)
	for _, key := range strings.Split(path, "/") {
		switch in := here.(type) {
		case map[string]any:
			here = in[key]
		case []any:
			var i int
			if _, err := fmt.Sscan(key, &i); err != nil || i >= len(in) {
				return nil
			}
			here = in[i]
		default:
			return nil
		}
	}
	return here
}

// text is at as text: strings as they are, all else as JSON.
func (o object) text(path string) string {
	switch v := o.at(path).(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		data, _ := json.Marshal(v)
		return string(data)
	}
}

type objects map[string]object

// render returns the objects of the chart, by KIND/NAME, with values of --set.
func render(t *testing.T, values ...string) objects {
	t.Helper()
	args := []string{"template", "x", chart, "--namespace", "ns"}
	for _, v := range values {
		if strings.HasSuffix(v, ".yaml") {
			args = append(args, "--values", v)
		} else {
			args = append(args, "--set", v)
		}
	}
	out, err := helm(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	all := objects{}
	for _, document := range strings.Split(out, "\n---\n") {
		var o object
		if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
			t.Fatalf("%v: %v\n%s", values, err, document)
		}
		if len(o) == 0 {
			continue
		}
		name := o.text("kind") + "/" + o.text("metadata/name")
		if all[name] != nil {
			t.Errorf("%v: two objects %s", values, name)
		}
		all[name] = o
	}
	return all
}

// named returns the names of the objects of a kind, sorted.
func (all objects) named(kind string) string {
	var names []string
	for name := range all {
		if k, n, _ := strings.Cut(name, "/"); k == kind {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

const (
	pod       = "spec/template/spec"
	container = pod + "/containers/0"
)

// Each switch changes what it says: the text at a path of an object contains what is wanted, or
// lacks it with a leading "!". "KIND/NAME" alone is there, with "!" is not.
func TestValues(t *testing.T) {
	const api, nodes = "StatefulSet/x-keelson", "Deployment/x-keelson-nodes-simulated"
	for _, c := range []struct {
		set  []string
		want []string
	}{
		{nil, []string{
			api + " spec/replicas 1", api + " " + container + "/command start", api + " " + container + "/lifecycle leave", api + " spec/volumeClaimTemplates 2Gi",
			api + " spec/persistentVolumeClaimRetentionPolicy \"whenDeleted\":\"Delete\",\"whenScaled\":\"Retain\"",
			api + " " + container + "/image keelson.dev/apiserver:local", api + " " + pod + "/topologySpreadConstraints ScheduleAnyway",
			"Deployment/x-keelson-scheduler spec/replicas 1", "Deployment/x-keelson-cloud-controller spec/replicas 1",
			nodes + " " + container + "/command --simulated=3", nodes + " " + container + "/command --simulated-zones=zone-a,zone-b,zone-c",
			"Service/x-keelson spec/type ClusterIP", "Service/x-keelson-members spec/publishNotReadyAddresses true",
			"Job/x-keelson-certificates metadata/annotations pre-install", "Job/x-keelson-settle metadata/annotations post-install",
			"Job/x-keelson-clean metadata/annotations post-delete", "Job/x-keelson-test metadata/annotations \"test\"",
			"ConfigMap/x-keelson-hooks data/certificates.json \"viewer\"", "ConfigMap/x-keelson-hooks data/settle.json \"members\":1",
			"!PodDisruptionBudget/x-keelson", "!Ingress/x-keelson", "!NetworkPolicy/x-keelson", "!ServiceMonitor/x-keelson", "!StatefulSet/x-keelson-node",
			"!ResourceQuota/x-keelson", "!LimitRange/x-keelson", "!CronJob/x-keelson-snapshots", "!ConfigMap/x-keelson-manifests",
		}},
		{[]string{"replicaCount=3"}, []string{
			api + " spec/replicas 3", api + " metadata/annotations/keelson.dev~replicas 3", "Deployment/x-keelson-scheduler spec/replicas 2",
			"PodDisruptionBudget/x-keelson spec/maxUnavailable 1", "PodDisruptionBudget/x-keelson-scheduler", "PodDisruptionBudget/x-keelson-cloud-controller",
			"ConfigMap/x-keelson-hooks data/settle.json \"members\":3",
		}},
		{[]string{"replicaCount=3", "podDisruptionBudget.enabled=false"}, []string{"!PodDisruptionBudget/x-keelson", "!PodDisruptionBudget/x-keelson-scheduler"}},
		{[]string{"replicaCount=5", "sleep=true"}, []string{
			api + " spec/replicas 0", api + " metadata/annotations/keelson.dev~replicas 5", "Deployment/x-keelson-scheduler spec/replicas 0",
			nodes + " spec/replicas 0", "CronJob/x-keelson-certificates spec/suspend true", "!Job/x-keelson-settle", "!PodDisruptionBudget/x-keelson",
		}},
		{[]string{"fullnameOverride=short"}, []string{"StatefulSet/short", "Service/short-members", "!" + api}},
		{[]string{"labels.team=a"}, []string{api + " metadata/labels \"team\":\"a\""}},
		{[]string{"image.repository=r.example.com/k", "image.tag=2", "image.pullPolicy=Never", "image.pullSecrets={s}"}, []string{
			api + " " + container + "/image r.example.com/k/apiserver:2", api + " " + container + "/imagePullPolicy Never", nodes + " " + pod + "/imagePullSecrets \"s\"",
		}},
		{[]string{"controlPlane.serviceCIDR=10.1.0.0/16", "controlPlane.clusterDomain=in.side", "controlPlane.logLevel=debug", "controlPlane.logFormat=json"}, []string{
			api + " " + container + "/command --service-cluster-ip-range=10.1.0.0/16", api + " " + container + "/command kubernetes.default.svc.in.side",
			api + " " + container + "/command --log-level=debug", "Deployment/x-keelson-scheduler " + container + "/args --log-format=json",
			"ConfigMap/x-keelson-hooks data/certificates.json 10.1.0.0/16",
		}},
		{[]string{"controlPlane.podCIDR=10.2.0.0/16", "controlPlane.loadBalancerCIDR=10.3.0.0/24"}, []string{
			"Deployment/x-keelson-controller-manager " + container + "/args --cluster-cidr=10.2.0.0/16",
			"Deployment/x-keelson-cloud-controller " + container + "/args --load-balancer-cidr=10.3.0.0/24",
		}},
		{[]string{"outerDomain=outer.test"}, []string{api + " " + container + "/command x-keelson.ns.svc.outer.test.:6444"}},
		{[]string{"apiserver.extraArgs={--deny-service-external-ips}", "apiserver.priorityClassName=p", "apiserver.nodeSelector.a=b", "apiserver.podAnnotations.c=d"}, []string{
			api + " " + container + "/command --deny-service-external-ips", api + " " + pod + "/priorityClassName p", api + " " + pod + "/nodeSelector \"a\":\"b\"",
			api + " spec/template/metadata/annotations \"c\":\"d\"",
		}},
		{[]string{"persistence.enabled=false"}, []string{api + " " + pod + "/volumes {\"emptyDir\":{},\"name\":\"data\"}", "!" + api + " spec/volumeClaimTemplates data"}},
		{[]string{"persistence.storageClass=fast", "persistence.size=9Gi", "persistence.retain=true"}, []string{
			api + " spec/volumeClaimTemplates \"storageClassName\":\"fast\"", api + " spec/volumeClaimTemplates 9Gi",
			api + " spec/persistentVolumeClaimRetentionPolicy \"whenDeleted\":\"Retain\"", "!Job/x-keelson-clean",
		}},
		{[]string{"etcd.servers={http://e:2379}", "replicaCount=2"}, []string{
			api + " " + container + "/command --etcd-servers=http://e:2379", "!" + api + " " + container + "/lifecycle leave", "!" + api + " spec/volumeClaimTemplates data",
			"ConfigMap/x-keelson-hooks data/settle.json \"members\":0", api + " " + pod + "/automountServiceAccountToken false", "!ConfigMap/x-keelson-state",
		}},
		{[]string{"scheduler.replicas=3", "scheduler.extraArgs={--scheduler-name=a}"}, []string{
			"Deployment/x-keelson-scheduler spec/replicas 3", "Deployment/x-keelson-scheduler " + container + "/args --scheduler-name=a",
		}},
		{[]string{"cloudController.enabled=false", "replicaCount=3"}, []string{"!Deployment/x-keelson-cloud-controller", "!PodDisruptionBudget/x-keelson-cloud-controller"}},
		{[]string{"nodes.simulated[0].name=big", "nodes.simulated[0].count=2", "nodes.simulated[0].cpu=64", "nodes.simulated[0].memory=1Ti", "nodes.simulated[0].maxPods=9", "nodes.simulated[0].labels.a=b", "nodes.simulated[0].taints={a=b:NoSchedule}", "nodes.simulated[0].region=r"}, []string{
			"Deployment/x-keelson-nodes-big " + container + "/command --capacity=cpu=64", "Deployment/x-keelson-nodes-big " + container + "/command --capacity=memory=1Ti",
			"Deployment/x-keelson-nodes-big " + container + "/command --capacity=pods=9", "Deployment/x-keelson-nodes-big " + container + "/command --label=a=b",
			"Deployment/x-keelson-nodes-big " + container + "/command --taint=a=b:NoSchedule", "Deployment/x-keelson-nodes-big " + container + "/command --region=r",
			"ConfigMap/x-keelson-hooks data/settle.json {\"count\":2,\"name\":\"big\"}", "!" + nodes,
		}},
		{[]string{chart + "/ci/real-values.yaml"}, []string{
			"StatefulSet/x-keelson-node spec/replicas 2", "StatefulSet/x-keelson-node " + container + "/securityContext SYS_ADMIN", "StatefulSet/x-keelson-node " + container + "/securityContext \"privileged\":false",
			"ConfigMap/x-keelson-hooks data/settle.json x-keelson-node-1", "Job/x-keelson-settle " + pod + "/volumes tokens/x-keelson-node-1", "!" + nodes,
			"!ConfigMap/x-keelson-hooks data/certificates.json \"simulated\":true", "Service/x-keelson spec/ports 30643",
		}},
		{[]string{"kubeconfigs.a.clusterRole=edit", "kubeconfigs.a.namespace=n"}, []string{
			"ConfigMap/x-keelson-hooks data/settle.json {\"clusterRole\":\"edit\",\"name\":\"a\",\"namespace\":\"n\"}", "Role/x-keelson-certificates rules x-keelson-kubeconfig-a",
		}},
		{[]string{"service.type=LoadBalancer", "service.loadBalancerClass=c", "service.annotations.a=b"}, []string{
			"Service/x-keelson spec/type LoadBalancer", "Service/x-keelson spec/loadBalancerClass c", "Service/x-keelson metadata/annotations \"a\":\"b\"",
			"ConfigMap/x-keelson-hooks data/settle.json \"certificates\":",
		}},
		{[]string{"service.outside=https://k.example.com:6443", "service.extraHosts={h}", "service.proxies={10.0.0.0/8}"}, []string{
			"ConfigMap/x-keelson-hooks data/certificates.json \"outside\":\"https://k.example.com:6443\"", "ConfigMap/x-keelson-hooks data/certificates.json \"h\"",
			api + " " + container + "/command --balancers=10.0.0.0/8",
		}},
		{[]string{chart + "/ci/kubernetes/policies-values.yaml"}, []string{
			"Ingress/x-keelson spec/rules k.example.com", "Ingress/x-keelson spec/ingressClassName nginx", "NetworkPolicy/x-keelson spec/ingress namespaceSelector",
			"NetworkPolicy/x-keelson-services", "ConfigMap/x-keelson-hooks data/certificates.json https://k.example.com:443",
		}},
		{[]string{"topologySpread.enabled=false"}, []string{"!" + api + " " + pod + "/topologySpreadConstraints maxSkew"}},
		{[]string{"resourceQuota.hard.pods=5", "limitRange.limits[0].type=Pod"}, []string{"ResourceQuota/x-keelson spec/hard 5", "LimitRange/x-keelson spec/limits Pod"}},
		{[]string{"serviceMonitor.enabled=true", "serviceMonitor.interval=5s", "serviceMonitor.labels.a=b"}, []string{
			"ServiceMonitor/x-keelson spec/endpoints 5s", "ServiceMonitor/x-keelson metadata/labels \"a\":\"b\"", "Service/x-keelson-metrics spec/clusterIP None",
		}},
		{[]string{"otlp.endpoint=c:4317"}, []string{api + " " + container + "/env c:4317", nodes + " " + container + "/env c:4317"}},
		{[]string{"initManifests.a\\.yaml=x: y"}, []string{"ConfigMap/x-keelson-manifests data x: y", "Job/x-keelson-settle " + container + "/args --manifests=/manifests"}},
		{[]string{"certificates.schedule=@daily"}, []string{"CronJob/x-keelson-certificates spec/schedule @daily"}},
		{[]string{"snapshots.enabled=true", "snapshots.schedule=@hourly", "snapshots.keep=2", "snapshots.size=1Gi"}, []string{
			"CronJob/x-keelson-snapshots spec/schedule @hourly", "CronJob/x-keelson-snapshots spec/jobTemplate --keep=2", `ConfigMap/x-keelson-hooks data/certificates.json "snapshots":{"size":"1Gi"`,
		}},
		{[]string{"snapshots.enabled=true", "snapshots.existingClaim=mine"}, []string{"CronJob/x-keelson-snapshots spec/jobTemplate \"claimName\":\"mine\"", `!ConfigMap/x-keelson-hooks data/certificates.json "snapshots"`}},
		{[]string{"restore.claim=old", "restore.file=a/b.snapshot"}, []string{api + " " + container + "/command --restore=/restore/a/b.snapshot", api + " " + pod + "/volumes \"claimName\":\"old\""}},
		{[]string{"faultInjection.acknowledge=i-want-faults", "faultInjection.killEvery=9s", "faultInjection.pauseEvery=8s", "faultInjection.pauseFor=1s", "faultInjection.latency=50ms"}, []string{
			api + " " + pod + "/containers/1/args --kill-every=9s", api + " " + pod + "/containers/1/args --pause-for=1s", api + " " + pod + "/containers/1/args --latency=50ms", api + " " + pod + "/shareProcessNamespace true",
		}},
		{[]string{"test.image=i:1"}, []string{"Job/x-keelson-test " + container + "/args --image=i:1"}},
	} {
		t.Run(strings.Join(c.set, ","), func(t *testing.T) {
			t.Parallel()
			all := render(t, c.set...)
			for _, want := range c.want {
				want, absent := strings.CutPrefix(want, "!")
				parts := strings.SplitN(want, " ", 3)
				o, there := all[parts[0]]
				if len(parts) == 1 {
					if there == absent {
						t.Errorf("%s: there %t", parts[0], there)
					}
					continue
				}
				path, key, _ := strings.Cut(parts[1], "~")
				got := o.text(path)
				if key != "" {
					i := strings.LastIndexByte(path, '/')
					in, _ := o.at(path[:i]).(map[string]any)
					got = fmt.Sprint(in[path[i+1:]+"/"+key])
				}
				if !there || strings.Contains(got, parts[2]) == absent {
					t.Errorf("%s: %s is %s, expected (not %t) %s; %s: %s", parts[0], parts[1], got, absent, parts[2], o.text("kind"), all.named(o.text("kind")))
				}
			}
		})
	}
}

// What is wrong is refused by its name, by the schema or by a check.
func TestWrongValuesAreRefused(t *testing.T) {
	for set, want := range map[string]string{
		"replicaCount=2":         "/replicaCount",
		"replicaCount=4":         "/replicaCount",
		"replicaCount=0":         "/replicaCount",
		"replicas=3":             "'replicas' not allowed",
		"image.name=a":           "'name' not allowed",
		"image.pullPolicy=never": "/image/pullPolicy",
		"persistence.size=big":   "/persistence/size",
		"service.type=External":  "/service/type",
		"nodes.simulated[0].name=a,nodes.simulated[0].count=0":                                                      "/nodes/simulated/0/count",
		"nodes.simulated[0].name=A,nodes.simulated[0].count=1":                                                      "/nodes/simulated/0/name",
		"nodes.simulated[0].name=a,nodes.simulated[0].count=1,nodes.simulated[0].shape=b":                           "'shape' not allowed",
		"nodes.simulated[0].name=a,nodes.simulated[0].count=1,nodes.simulated[1].name=a,nodes.simulated[1].count=1": "two groups are called a",
		"kubeconfigs.a.namespace=n":                                 "/kubeconfigs/a",
		"kubeconfigs.A_.clusterRole=view":                           "A_",
		"snapshots.schedule=often":                                  "/snapshots/schedule",
		"snapshots.keep=0":                                          "/snapshots/keep",
		"otlp.endpoint=http://a":                                    "/otlp/endpoint",
		"controlPlane.serviceCIDR=10.0.0.0":                         "/controlPlane/serviceCIDR",
		"apiserver.extraArgs={delete-everything}":                   "/apiserver/extraArgs/0",
		"fullnameOverride=" + strings.Repeat("a", 41):               "has 41 characters; it may have 40",
		"persistence.enabled=false,replicaCount=3":                  "needs volumes",
		"persistence.enabled=false,sleep=true":                      "would be lost",
		"etcd.servers={http://a:1},snapshots.enabled=true":          "etcd elsewhere",
		"restore.claim=a":                                           "needs restore.file",
		"restore.file=a":                                            "needs restore.claim",
		"ingress.enabled=true":                                      "needs ingress.host",
		"faultInjection.killEvery=5s":                               "i-want-faults",
		"faultInjection.latency=5ms,faultInjection.acknowledge=yes": "i-want-faults",
		"faultInjection.killEvery=often":                            "/faultInjection/killEvery",
		"nodes.real.count=1":                                        "allowHostAccess",
		"nodes.real.count=1,nodes.real.allowHostAccess=yes,nodes.real.capabilities={KILL}": "SYS_ADMIN",
	} {
		t.Run(set, func(t *testing.T) {
			t.Parallel()
			if _, err := helm(t, "template", "x", chart, "--set", set); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; expected %s", err, want)
			}
		})
	}
	if _, err := helm(t, "template", strings.Repeat("a", 40), chart); err == nil || !strings.Contains(err.Error(), "it may have 40") {
		t.Errorf("a long release name: %v", err)
	}
}

func files(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"ci/*.yaml", "ci/*/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(chart, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 5 {
		t.Fatalf("values files: %v", all)
	}
	return all
}

func TestDemo(t *testing.T) {
	for file, want := range map[string]string{"values.yaml": "keelson.dev/demo/shop:1", "ci/small-values.yaml": "keelson.dev/demo/shop:2"} {
		out, err := helm(t, "template", "x", demo, "--values", filepath.Join(demo, file))
		if err != nil || !strings.Contains(out, "image: "+want) || !strings.Contains(out, "proxy_pass http://x-shop.default.svc.cluster.local:8080;") {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	for set, want := range map[string]string{"shop.count=1": "'count' not allowed", "web.serviceType=a": "/web/serviceType", "postgres.password=a/b": "/postgres/password"} {
		if _, err := helm(t, "template", "x", demo, "--set", set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; expected %s", set, err, want)
		}
	}
	if out, err := helm(t, "lint", "--strict", demo); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestLint(t *testing.T) {
	args := []string{"lint", "--strict", chart}
	for _, file := range files(t) {
		if out, err := helm(t, append(args, "--values", file)...); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// All pods but those of real nodes satisfy the Restricted Pod Security Standard, select what they
// are labelled with, and get nothing of the outer cluster that they do not need.
func TestPodsAreRestricted(t *testing.T) {
	tokens := map[string]bool{"StatefulSet/x-keelson": true, "Job/x-keelson-certificates": true, "Job/x-keelson-settle": true, "Job/x-keelson-clean": true, "CronJob/x-keelson-certificates": true}
	for _, file := range append(files(t), "sleep=false") {
		for name, o := range render(t, file) {
			path := map[string]string{"StatefulSet": "spec/template", "Deployment": "spec/template", "Job": "spec/template", "CronJob": "spec/jobTemplate/spec/template"}[o.text("kind")]
			if path == "" || name == "StatefulSet/x-keelson-node" {
				continue
			}
			spec := path + "/spec"
			if o.text(spec+"/securityContext/runAsNonRoot") != "true" || o.text(spec+"/securityContext/seccompProfile/type") != "RuntimeDefault" || o.text(spec+"/hostNetwork") != "" {
				t.Errorf("%s: %s: %s", file, name, o.text(spec+"/securityContext"))
			}
			if got := o.text(spec+"/automountServiceAccountToken") == "true"; got != tokens[name] && (got || file != filepath.Join(chart, "ci", "etcd-values.yaml")) {
				t.Errorf("%s: %s: token of the outer cluster: %t", file, name, got)
			}
			all, _ := o.at(spec + "/containers").([]any)
			for i := range all {
				c := fmt.Sprintf("%s/containers/%d", spec, i)
				want := `{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},"readOnlyRootFilesystem":true}`
				if got := o.text(c + "/securityContext"); got != want {
					t.Errorf("%s: %s: container %d: %s", file, name, i, got)
				}
				if o.text(c+"/resources/limits/memory") == "" || o.text(c+"/resources/requests/cpu") == "" {
					t.Errorf("%s: %s: container %d has no requests or limits", file, name, i)
				}
			}
			volumes, _ := o.at(spec + "/volumes").([]any)
			for _, v := range volumes {
				if v.(map[string]any)["hostPath"] != nil {
					t.Errorf("%s: %s mounts a path of the host", file, name)
				}
			}
			selector, _ := o.at("spec/selector/matchLabels").(map[string]any)
			labels, _ := o.at(path + "/metadata/labels").(map[string]any)
			for k, v := range selector {
				if labels[k] != v {
					t.Errorf("%s: %s selects %s=%s, which its pods do not have", file, name, k, v)
				}
			}
		}
	}
}

// The number of members is the only thing that scaling changes in their StatefulSet, so that no
// apiserver restarts.
func TestScalingRestartsNothing(t *testing.T) {
	one, three := render(t), render(t, "replicaCount=3")
	for name, o := range one {
		if kind := o.text("kind"); kind != "StatefulSet" && kind != "Deployment" {
			continue
		}
		if before, after := o.text("spec/template"), three[name].text("spec/template"); before != after {
			t.Errorf("%s: the template changes:\n%s\n%s", name, before, after)
		}
	}
}
