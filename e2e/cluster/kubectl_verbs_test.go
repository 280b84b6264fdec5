package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

const settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {key: before}\n"

const reader = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: "{ns}"}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list]}
`

// request asks for a client certificate of O=e2e-group, CN=e2e-user. Its key is not kept.
const request = `
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: "{ns}"}
spec:
  signerName: kubernetes.io/kube-apiserver-client
  usages: [client auth]
  request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIaU1JR0pBZ0VBTUNjeEVqQVFCZ05WQkFvTUNXVXlaUzFuY205MWNERVJNQThHQTFVRUF3d0laVEpsTFhWegpaWEl3V1RBVEJnY3Foa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVFwcGc5UDlFQTNJMzFjditOenlhZGdGYWNlCmpycWl5aVVSZUpXYVR4WWRKMVpweUtmMjZDTXdrbXJNajIvZjBMUDllQWRacTlhYVpqbjFBSC8vdHA3OW9BQXcKQ2dZSUtvWkl6ajBFQXdJRFNBQXdSUUlnZVNpdnZOQTkyUzBpOXpCQ2RsT3ZSWEI0K2N1cjB3YXJYUHVzbE5xMAorQ29DSVFEcjVlL1ZUUGkxd1B0cGgzeG1YTTlJOHpNblZZd2puOFB0enJHZkg5WWk2dz09Ci0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=
`

// recorded are rows of the newest kubectl whose whole output, on both streams, was recorded
// from Kubernetes into testdata/kubectl. Steps hold args and stdin only. {dir} is a directory
// of the row's own. No pod has to run: deployments have no replicas.
var recorded = []row{
	{name: "CreateAccess", steps: []step{
		{args: "create serviceaccount robot -o yaml"},
		{args: "create role reader --verb=get,list --resource=pods,deployments.apps/scale --resource-name=web -o yaml"},
		{args: "create rolebinding reader --role=reader --user=jane --group=staff --serviceaccount={ns}:robot -o yaml"},
		{args: "create clusterrole {ns} --verb=get --non-resource-url=/healthz --dry-run=server -o yaml"},
		{args: "create clusterrolebinding {ns} --clusterrole=view --user=jane --dry-run=server -o yaml"},
		{args: "set subject rolebinding/reader --user=joe --group=guests"},
		{args: "get rolebinding reader -o yaml"},
		{args: "get serviceaccounts,roles,rolebindings -o wide"},
		{args: "describe role reader"},
		{args: "describe rolebinding reader"},
		{args: "describe serviceaccount robot"},
		{args: "auth reconcile -f -", stdin: strings.Replace(reader, "list]", "list, watch]", 1)},
		{args: "auth reconcile -f - --remove-extra-permissions", stdin: reader},
		{args: "get role reader -o jsonpath={.rules}"},
		{args: "delete role,rolebinding reader"},
	}},
	{name: "CreateConfiguration", steps: []step{
		{args: "create configmap c --from-literal=key=value --from-file=file=testdata/file.txt -o yaml"},
		{args: "create configmap c --from-literal=key=value"},
		{args: "create secret generic s --from-literal=password=x -o yaml"},
		{args: "create secret docker-registry r --docker-server=registry.invalid --docker-username=u --docker-password=p -o yaml"},
		{args: "create secret tls t --cert={dir}/crt --key={dir}/key"},
		{args: "create quota q --hard=pods=3,count/jobs.batch=1 --scopes=NotTerminating --dry-run=server -o yaml"},
		{args: "create quota q --hard=secrets=x"},
		{args: "create namespace {ns}-inner --dry-run=server -o yaml"},
		{args: "create priorityclass {ns} --value=1000 --description=urgent --preemption-policy=Never --dry-run=server -o yaml"},
		{args: "get secrets,configmaps c s r t"},
		{args: "get secrets"},
		{args: "describe configmap c"},
		{args: "describe secrets s r"},
	}},
	{name: "CreateServices", steps: []step{
		{args: "create service clusterip inside --tcp=80:8080 -o yaml"},
		{args: "create service clusterip headless --clusterip=None --tcp=80 -o yaml"},
		{args: "create service nodeport outside --tcp=80:http -o yaml"},
		{args: "create service loadbalancer balanced --tcp=443 --dry-run=server -o yaml"},
		{args: "create service externalname elsewhere --external-name=example.com -o yaml"},
		{args: "set selector service/inside app=other,tier=front"},
		{args: "get services -o wide"},
		{args: "describe service elsewhere"},
		{args: "create service nodeport outside --tcp=80"},
		{args: "create service clusterip Bad_Name --tcp=80"},
	}},
	{name: "CreateWorkloads", steps: []step{
		{args: "create deployment web --image=nginx --replicas=0 --port=80 -o yaml"},
		{args: "create job once --image=busybox --dry-run=server -o yaml -- true"},
		{args: "create cronjob tick --image=busybox --schedule=0%0%1%1%* -o yaml -- date"},
		{args: "create cronjob tock --image=busybox --schedule=never -- date"},
		{args: "create job tock --from=cronjob/tick --dry-run=server -o yaml"},
		{args: "create poddisruptionbudget web --selector=app=web --min-available=50% -o yaml"},
		{args: "run box --image=busybox --env=COLOR=red --port=80 --labels=app=box --dry-run=server -o yaml --command -- sleep 60"},
		{args: "expose deployment web --port=80 --target-port=8080 --name=front -o yaml"},
		{args: "autoscale deployment web --min=1 --max=3 --cpu=60% --memory=64Mi -o yaml"},
		{args: "wait --for=jsonpath={.status.observedGeneration}=1 deployment/web --timeout=60s"},
		{args: "get deployments,cronjobs -o wide"},
		{args: "describe cronjob tick"},
		{args: "scale deployment web --replicas=0 --current-replicas=5"},
		{args: "delete deployment/web cronjob/tick service/front"},
		{args: "delete pdb,hpa --all"},
	}},
	{name: "SetAndRollout", steps: []step{
		{args: "create deployment web --image=nginx:1 --replicas=0"},
		{args: "wait --for=jsonpath={.status.observedGeneration}=1 deployment/web --timeout=60s"},
		{args: "set image deployment/web nginx=nginx:2"},
		{args: "set env deployment/web COLOR=red"},
		{args: "set env deployment/web --list"},
		{args: "set resources deployment/web --limits=cpu=200m,memory=64Mi --requests=cpu=100m"},
		{args: "set serviceaccount deployment/web robot"},
		{args: "get deployment web -o jsonpath={.spec}"},
		{args: "wait --for=jsonpath={.status.observedGeneration}=5 deployment/web --timeout=60s"},
		{args: "rollout status deployment/web --timeout=60s"},
		{args: "annotate deployment web kubernetes.io/change-cause=settings"},
		{args: "rollout history deployment/web --revision=1"},
		{args: "rollout pause deployment/web"},
		{args: "rollout pause deployment/web"},
		{args: "rollout restart deployment/web"},
		{args: "rollout undo deployment/web"},
		{args: "rollout resume deployment/web"},
		{args: "rollout undo deployment/web --to-revision=1"},
		{args: "rollout undo deployment/web --to-revision=77"},
		{args: "get deployment web -o jsonpath={.spec.template.spec}"},
		{args: "rollout status deployment/none"},
	}},
	{name: "ApplyAndEdit", steps: []step{
		{args: "apply -f -", stdin: settings},
		{args: "apply view-last-applied configmap settings"},
		{args: "apply edit-last-applied configmap settings"},
		{args: "apply view-last-applied configmap settings -o json"},
		{args: "apply set-last-applied -f -", stdin: settings},
		{args: "edit configmap settings"},
		{args: "get configmap settings -o jsonpath={.data}"},
		{args: "replace -f -", stdin: settings},
		{args: "replace --force -f -", stdin: settings},
		{args: "replace -f -", stdin: strings.Replace(settings, "settings", "none", 1)},
		{args: "wait --for=jsonpath={.data.key}=before configmap/settings --timeout=60s"},
		{args: "wait --for=condition=Ready configmap/settings --timeout=0"},
		{args: "wait --for=delete configmap/none --timeout=60s"},
		{args: "patch configmap settings --type=merge -p {\"data\":{\"key\":null,\"more\":\"yes\"}} -o yaml"},
		{args: "patch configmap settings --type=json -p [{\"op\":\"remove\",\"path\":\"/data/none\"}]"},
		{args: "patch configmap settings -p {\"datum\":1}"},
		{args: "label configmap settings a=b c-"},
		{args: "label configmap settings a=not/valid/value --overwrite"},
		{args: "annotate configmap settings note=yes --resource-version=1"},
		{args: "delete configmap settings --dry-run=server"},
		{args: "delete configmap settings none"},
		{args: "delete configmap none --ignore-not-found"},
		{args: "events"},
		{args: "get pods"},
		{args: "get events"},
	}},
	{name: "Kustomize", steps: []step{
		{args: "kustomize testdata/kustomize"},
		{args: "apply -k testdata/kustomize"},
		{args: "diff -k testdata/kustomize"},
		{args: "get -k testdata/kustomize -o name"},
		{args: "delete -k testdata/kustomize"},
	}},
	{name: "Explain", steps: []step{
		{args: "explain deployments.spec.strategy --recursive"},
		{args: "explain pods.spec.containers.livenessProbe"},
		{args: "explain horizontalpodautoscalers --api-version=autoscaling/v2"},
		{args: "explain cronjobs.spec --output=plaintext-openapiv2"},
		{args: "explain pods.spec.none"},
		{args: "explain teapots"},
	}},
	{name: "CertificateDeny", steps: []step{
		{args: "apply -f -", stdin: request},
		{args: "certificate deny {ns}"},
		{args: "get csr {ns}"},
		{args: "describe csr {ns}"},
		{args: "certificate approve {ns}"},
		{args: "delete csr {ns}"},
	}},
	{name: "NodeTaints", steps: []step{
		{args: "taint node node-2 {ns}=yes:PreferNoSchedule"},
		{args: "taint node node-2 {ns}=no:PreferNoSchedule"},
		{args: "taint node node-2 {ns}=no:PreferNoSchedule --overwrite"},
		{args: "taint node node-2 {ns}:Sometimes"},
		{args: "taint node node-2 {ns}-"},
		{args: "taint node node-2 {ns}-"},
		{args: "label node node-2 {ns}=yes"},
		{args: "get nodes -l {ns}=yes -o name"},
		{args: "label node node-2 {ns}-"},
		{args: "cordon none"},
		{args: "uncordon node-2"},
		{args: "drain none"},
	}},
	{name: "DebugCopy", steps: []step{
		{args: "run box --image=busybox:none --restart=Never --command -- sleep 60"},
		{args: "debug box --copy-to=copy --container=box --set-image=box=busybox:absent"},
		{args: "get pod copy -o jsonpath={.spec.containers[0].image}"},
		{args: "delete pod box copy --now"},
	}},
	{name: "Config", steps: []step{
		{args: "config set-cluster c --server=https://127.0.0.1:1 --kubeconfig={dir}/config"},
		{args: "config set-credentials u --token=t --kubeconfig={dir}/config"},
		{args: "config set-context x --cluster=c --user=u --namespace=n --kubeconfig={dir}/config"},
		{args: "config use-context x --kubeconfig={dir}/config"},
		{args: "config current-context --kubeconfig={dir}/config"},
		{args: "config set contexts.x.namespace m --kubeconfig={dir}/config"},
		{args: "config view --kubeconfig={dir}/config"},
		{args: "config unset contexts.x.namespace --kubeconfig={dir}/config"},
		{args: "config rename-context x y --kubeconfig={dir}/config"},
		{args: "config get-contexts --kubeconfig={dir}/config"},
		{args: "config get-clusters --kubeconfig={dir}/config"},
		{args: "config get-users --kubeconfig={dir}/config"},
		{args: "config delete-context y --kubeconfig={dir}/config"},
		{args: "config delete-user u --kubeconfig={dir}/config"},
		{args: "config delete-cluster c --kubeconfig={dir}/config"},
		{args: "kuberc set --section=defaults --command=get --option=output=name --kuberc={dir}/kuberc"},
		{args: "kuberc view --kuberc={dir}/kuberc"},
		{args: "get serviceaccounts --kuberc={dir}/kuberc"},
	}},
}

// local are rows of verbs of the newest kubectl that print what differs between clusters, or
// pages of text of their own.
var local = []row{
	{name: "Local", steps: []step{
		{args: "completion bash", has: []string{"complete -o default -F __start_kubectl kubectl"}},
		{args: "completion zsh", has: []string{"#compdef kubectl"}},
		{args: "options", has: []string{"The following options can be passed to any command:", "--kubeconfig="}},
		{args: "plugin list", has: []string{"The following compatible plugins are available:", "/kubectl-1.32"}},
		{args: "version --client", prints: "Client Version: v1.37.*\nKustomize Version: v*\n"},
		{args: "cluster-info dump --namespaces={ns}", has: []string{`"kind": "NodeList"`, `"kind": "ReplicationControllerList"`, `"kind": "PodList"`}},
	}},
	{name: "Ingress", steps: []step{
		{args: "create ingress i --class=none --rule=example.com/*=web:80,tls=web --annotation=a=b", prints: "ingress.networking.k8s.io/i created\n"},
		{args: "create ingress j --rule=example.com=web:80", fails: true, has: []string{"error: rule example.com=web:80 is invalid"}},
		{args: "get ingress i", prints: "NAME   CLASS   HOSTS         ADDRESS   PORTS     AGE\ni      none    example.com             80, 443   *s\n"},
		{args: "describe ingress i", has: []string{"Ingress Class:    none", "web terminates example.com", `/   web:80 (<error: services "web" not found>)`}},
		{args: "delete ingress i", has: []string{`ingress.networking.k8s.io "i" deleted`}},
	}},
}

// elsewhere are the verbs that are tested by functions.
var elsewhere = map[string]func(*testing.T){
	"attach": TestKubectlStreams, "port-forward": TestKubectlStreams, "proxy": TestKubectlProxy, "drain": TestKubectlNodes,
	"top node": TestUsage, "top pod": TestUsage, "certificate approve": TestKubectlCertificate,
}

// TestKubectlVerbs runs the local rows.
func TestKubectlVerbs(t *testing.T) {
	t.Parallel()
	for _, row := range local {
		if *kubernetesDir != "" && row.needs != "" {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			ns := namespace(t)
			for _, s := range row.steps {
				runStep(t, "kubectl", ns, s)
			}
		})
	}
}

// TestKubectlRecorded compares all that kubectl prints with what it prints of Kubernetes. To
// record again, or a row that is new:
//
//	scripts/kubernetes.sh .cache/kubernetes   # builds Kubernetes' control plane
//	cd e2e && go test -count=1 -run TestKubectlRecorded ./cluster -args -kubernetes "$PWD/../.cache/kubernetes"
//
// With -run 'TestKubectl(|Verbs|Diff|Edit)$' the same command checks what the other rows state.
func TestKubectlRecorded(t *testing.T) {
	t.Parallel()
	for _, row := range recorded {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			ns, dir := namespace(t), t.TempDir()
			var session strings.Builder
			for _, s := range row.steps {
				switch {
				case strings.Contains(s.args, "{dir}/crt"):
					writePair(t, dir)
				case strings.Contains(s.args, "kuberc set"):
					writePreferences(t, dir)
				}
				fmt.Fprintf(&session, "$ kubectl %s\n%s", s.args, comparable(printed(t, ns, dir, s), ns, dir))
			}
			golden := filepath.Join("testdata/kubectl", row.name+".txt")
			if *kubernetesDir != "" {
				if err := os.WriteFile(golden, []byte(session.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			differ := exec.CommandContext(t.Context(), "diff", "-u", "--label", "Kubernetes", "--label", "Keelson", golden, "-")
			differ.Stdin = strings.NewReader(session.String())
			if out, err := differ.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// printed runs a step and returns what it prints, with its exit code unless that is 0.
func printed(t *testing.T, ns, dir string, s step) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), shared.Patience)
	defer cancel()
	filled := strings.NewReplacer("{ns}", ns, "{dir}", dir)
	cmd := shared.Command(ctx, "kubectl", arguments(ns, filled.Replace(s.args))...)
	cmd.Env = append(cmd.Env, "KUBE_EDITOR=sed -i s/before/after/")
	cmd.Stdin = strings.NewReader(filled.Replace(s.stdin))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || ctx.Err() != nil {
			t.Fatalf("kubectl %s: %v", s.args, errors.Join(err, ctx.Err()))
		}
		fmt.Fprintf(&out, "(exit code %d)\n", exit.ExitCode())
	}
	if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
		out.WriteByte('\n')
	}
	return out.String()
}

// arguments splits a step's args.
func arguments(ns, args string) []string {
	list := []string{"-n", ns}
	for _, a := range strings.Fields(args) {
		if strings.HasSuffix(a, "%") { // a percentage
			list = append(list, a)
			continue
		}
		list = append(list, strings.ReplaceAll(a, "%", " "))
	}
	return list
}

// writePair writes a certificate and its key, dir/crt and dir/key.
func writePair(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", dir+"/key", "-out", dir+"/crt", "-subj", "/CN=e2e", "-days", "1").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
}

// writePreferences writes an empty file of preferences, dir/kuberc.
func writePreferences(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(dir+"/kuberc", []byte("apiVersion: kubectl.config.k8s.io/v1beta1\nkind: Preference\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// varying are the parts of an output that differ from run to run, and what stands for them.
var varying = []struct {
	part *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "TIME"},
	{regexp.MustCompile(`(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}`), "TIME"},
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`resourceVersion: "\d+"`), `resourceVersion: "N"`},
	{regexp.MustCompile(`(?m)(  +)(\d+m)?\d+s( |$)`), "${1}AGE$3"},
	{regexp.MustCompile(`kube-api-access-\w{5}`), "kube-api-access-NAME"},
	{regexp.MustCompile(`\b10\.\d+\.\d+\.\d+\b`), "IP"},
	{regexp.MustCompile(`\b3[0-2]\d{3}\b`), "PORT"},
	{regexp.MustCompile(`\bweb-[0-9a-f]{8,10}\b`), "web-HASH"},
	{regexp.MustCompile(`pod-template-hash=[0-9a-f]{8,10}\b`), "pod-template-hash=HASH"},
	{regexp.MustCompile(`tolerationSeconds: \d+`), "tolerationSeconds: N"}, // an option, which keel up sets
	// The width of a column depends on the values.
	{regexp.MustCompile(`(\S)  +`), "$1  "},
	{regexp.MustCompile(`(?m)[ \t]+$`), ""},
}

// comparable is an output with names for what varies.
func comparable(out, ns, dir string) string {
	out = strings.NewReplacer(ns, "{ns}", dir, "{dir}").Replace(out)
	for _, v := range varying {
		out = v.part.ReplaceAllString(out, v.name)
	}
	return out
}

// TestComparable checks what the recorded outputs are compared by.
func TestComparable(t *testing.T) {
	for _, row := range []struct{ out, want string }{
		{"n   {ns}1   3m5s   web-7d9c5b6f4d\n", "n  {ns}1  AGE  web-HASH\n"},
		{"  uid: 6b3d0c1e-9f3a-4f0e-8d3b-0a1b2c3d4e5f\n", "  uid: UID\n"},
		{"NAME    AGE   \nq       12s   \n", "NAME  AGE\nq  AGE\n"},
		{"port 30080 of 10.96.4.2, 8080\n", "port PORT of IP, 8080\n"},
	} {
		if got := comparable(row.out, "e2e-namespace", "/tmp/dir"); got != row.want {
			t.Errorf("%q: %q, want %q", row.out, got, row.want)
		}
	}
}

// TestKubectlProxy checks that kubectl proxy answers with the apiserver's answers.
func TestKubectlProxy(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.Command(ctx, "kubectl", "proxy", "--port=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	var port int
	if _, err := fmt.Fscanf(out, "Starting to serve on 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("kubectl proxy does not print its address: %v", err)
	}
	wait.For(t, time.Minute, "kubectl proxy answers", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/api/v1/namespaces/default", port), nil)
		if err != nil {
			return wait.Stop(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(resp.Body); err != nil || !strings.Contains(body.String(), `"kind":"Namespace"`) {
			return fmt.Errorf("%s: %s, %w", resp.Status, body.String(), err)
		}
		return nil
	})
}

// TestEveryVerbHasARow compares the rows with what `kubectl --help` lists, down to the
// subcommands of subcommands.
func TestEveryVerbHasARow(t *testing.T) {
	t.Parallel()
	tested := map[string]bool{}
	for verb := range elsewhere {
		tested[verb] = true
	}
	var steps []step
	for _, list := range [][]row{rows, recorded, local} {
		for _, r := range list {
			steps = append(steps, r.steps...)
		}
	}
	for _, s := range steps {
		words := strings.Fields(s.args)
		for n := range min(3, len(words)) {
			tested[strings.Join(words[:n+1], " ")] = true
		}
	}
	verbs := listVerbs(t)
	if len(verbs) < 80 {
		t.Fatalf("kubectl --help lists only %d verbs: %q", len(verbs), verbs)
	}
	for _, verb := range verbs {
		if !tested[verb] {
			t.Errorf("kubectl %s has no row", verb)
		}
	}
}

// listVerbs returns all verbs of the newest kubectl. A verb that only groups others is not
// one of them. Below the second level, kubectl's summary of a verb shows whether there are
// more, which saves half of the calls.
func listVerbs(t *testing.T, group ...string) []string {
	t.Helper()
	help := shared.Must(t, "kubectl", append(group, "--help")...)
	var list []string
	inside := false
	for line := range strings.Lines(help) {
		name, summary, _ := strings.Cut(strings.TrimSpace(line), " ")
		verb := append(group[:len(group):len(group)], name)
		switch {
		case !strings.HasPrefix(line, " "):
			inside = strings.Contains(line, "Commands")
		case inside && len(group) > 0 && !strings.Contains(summary, "subcommand"):
			list = append(list, strings.Join(verb, " "))
		case inside:
			list = append(list, listVerbs(t, verb...)...)
		}
	}
	if len(group) == 0 || len(list) > 0 && !strings.Contains(help, "FILENAME") {
		return list
	}
	return append(list, strings.Join(group, " "))
}
