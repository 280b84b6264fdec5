package compose_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.dev/e2e/internal/pace"
	"keelson.dev/e2e/internal/wait"
)

// demoImages are what the demonstration application runs.
var demoImages = []string{"nginx", "shop", "postgres", "redis"}

// TestCompose is the life of one cluster: the parts after Up and Demo use what those two
// have started.
func TestCompose(t *testing.T) {
	e := &engine{dir: os.Getenv(dirVariable)}
	e.place(t)
	e.start(t)
	t.Cleanup(func() {
		if t.Failed() {
			e.describe(t)
		}
		e.stop(t)
	})
	e.loadImages(t)
	steps := []struct {
		name string
		run  func(*testing.T, *engine)
	}{
		{"Up", testUp},
		{"Logs", testLogs},
		{"Apart", testApart},
		{"Overlap", testOverlap},
		{"Paused", testPaused},
		{"NoQuorum", testNoQuorum},
		{"Demo", testDemo},
		{"Observability", testObservability},
		{"Kills", testKills},
		{"Scale", testScale},
		{"DownAndUpElsewhere", testDownAndUp},
		{"EngineRestart", testEngineRestart},
	}
	for _, s := range steps {
		ended := false
		t.Run(s.name, func(t *testing.T) { s.run(t, e); ended = true })
		// A part that fails does not end the test, but one that cannot go on does if others
		// depend on it.
		if !ended && (s.name == "Up" || s.name == "Demo") {
			return
		}
	}
}

// place copies deploy/compose and checks that the images are built.
func (e *engine) place(t *testing.T) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(e.path("compose", "images"), 0o755), os.MkdirAll(e.path("config"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"docker-compose.yaml", ".env"} {
		copyFile(t, filepath.Join("../../deploy/compose", name), e.path("compose", name))
	}
	bin, err := filepath.Abs(programs())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "images", "node.tar")); err != nil {
		t.Fatalf("%v: run `make compose-test`, which builds the images first", err)
	}
	t.Setenv("PATH", filepath.Join(bin, "runtime")+":"+os.Getenv("PATH"))
}

func programs() string {
	if bin := os.Getenv("KEELSON_BIN"); bin != "" {
		return bin
	}
	return "../../bin"
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

func (e *engine) loadImages(t *testing.T) {
	t.Helper()
	archives, err := filepath.Glob(filepath.Join(programs(), "images", "*.tar"))
	if err != nil || len(archives) != 6 {
		t.Fatalf("%d image archives of six: %v", len(archives), err)
	}
	for _, a := range archives {
		path, err := filepath.Abs(a)
		if err != nil {
			t.Fatal(err)
		}
		e.must(t, "load", "-q", "-i", path)
	}
	t.Logf("images:\n%s", e.must(t, "images", "--format", "{{.Repository}}:{{.Tag}}\t{{.Size}}"))
}

func (e *engine) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.run(t.Context(), 6*time.Minute, "kubectl", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leasesRenewed waits until every node has renewed its Lease from now on: after a pause of
// the apiservers a node is taken for lost until it has.
func (e *engine) leasesRenewed(t *testing.T) {
	t.Helper()
	began := time.Now()
	wait.For(t, 2*time.Minute, "every node renews its Lease", func(ctx context.Context) error {
		out, err := e.run(ctx, 10*time.Second, "kubectl", "-n", "kube-node-lease", "get", "leases", "-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.renewTime}{"\n"}{end}`)
		if err != nil {
			return err
		}
		leases := strings.Fields(out)
		if len(leases) < 3 {
			return fmt.Errorf("%d Leases", len(leases))
		}
		for _, lease := range leases {
			name, at, _ := strings.Cut(lease, "=")
			renewed, err := time.Parse(time.RFC3339Nano, at)
			if err != nil {
				return fmt.Errorf("the Lease of %s: %w", name, err)
			}
			if renewed.Before(began) {
				return fmt.Errorf("%s renewed its Lease at %s", name, at)
			}
		}
		return nil
	})
}

// nodesReady waits until count nodes are Ready, each at its container's address.
func (e *engine) nodesReady(t *testing.T, within time.Duration, count int) {
	t.Helper()
	wait.For(t, within, fmt.Sprintf("%d nodes are Ready", count), func(ctx context.Context) error {
		out, err := e.run(ctx, 10*time.Second, "kubectl", "get", "nodes", "--request-timeout=2s", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.status.addresses[?(@.type=="InternalIP")].address} {.spec.taints[*].key}{"\n"}{end}`)
		if err != nil {
			return err
		}
		ready := 0
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 3 && f[1] == "True" {
				if err := e.runsAt(f[2]); err != nil {
					return fmt.Errorf("%s: %w", f[0], err)
				}
				ready++
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d are Ready:\n%s", ready, count, out)
		}
		return nil
	})
}

// runsAt is nil if the running container of a node has this address.
func (e *engine) runsAt(address string) error {
	all, err := e.containers()
	if err != nil {
		return err
	}
	for _, c := range all {
		for _, n := range c.NetworkSettings.Networks {
			if c.service() == "node" && c.State.Running && n.IPAddress == address {
				return nil
			}
		}
	}
	return fmt.Errorf("no container has the address %s", address)
}

// takeKubeconfig copies the kubeconfig by the README's command.
func (e *engine) takeKubeconfig(t *testing.T) {
	t.Helper()
	setup := strings.TrimSpace(e.compose(t, "ps", "-aq", "setup"))
	e.must(t, "cp", setup+":/pki/admin/kubeconfig", e.path("kubeconfig"))
	if st, err := os.Stat(e.path("kubeconfig")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig has mode %v: %v", st.Mode(), err)
	}
}

func testUp(t *testing.T, e *engine) {
	clock, began := pace.Start(t), time.Now()
	e.compose(t, "up", "-d")
	t.Logf("docker-compose up returned after %s", time.Since(began).Round(10*time.Millisecond))
	e.takeKubeconfig(t)
	e.nodesReady(t, time.Minute, 3)
	took := time.Since(began)
	t.Logf("three nodes were Ready %s after up, from built images", took.Round(10*time.Millisecond))
	if given := clock.Since(began); given > 30*time.Second {
		t.Errorf("three Ready nodes after %s, of which the machine gave %s; want 30 s at most", took, given)
	}
	// A second up changes no key and no kubeconfig.
	first, err := os.ReadFile(e.path("kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	e.compose(t, "up", "-d")
	e.takeKubeconfig(t)
	if second, err := os.ReadFile(e.path("kubeconfig")); err != nil || string(second) != string(first) {
		t.Errorf("a second up made another kubeconfig: %v", err)
	}
}

func testDemo(t *testing.T, e *engine) {
	images := os.Getenv("KEELSON_IMAGES")
	if images == "" {
		images = "../../.cache/images"
	}
	e.leasesRenewed(t)
	e.nodesReady(t, 2*time.Minute, 3)
	began := time.Now()
	for _, image := range demoImages {
		copyFile(t, filepath.Join(images, image+".tar"), e.path("compose", "images", image+".tar.new"))
		if err := os.Rename(e.path("compose", "images", image+".tar.new"), e.path("compose", "images", image+".tar")); err != nil {
			t.Fatal(err)
		}
	}
	manifest, err := filepath.Abs("../../deploy/demo/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	e.kubectl(t, "apply", "-f", manifest)
	for _, d := range []string{"postgres", "redis", "shop", "web"} {
		e.kubectl(t, "-n", "demo", "rollout", "status", "deployment/"+d, "--timeout=300s")
	}
	e.kubectl(t, "-n", "demo", "wait", "--for=condition=Complete", "job/migrate", "--timeout=120s")
	t.Logf("the demonstration ran %s after its images came", time.Since(began).Round(100*time.Millisecond))
	nodes := strings.Fields(e.kubectl(t, "-n", "demo", "get", "pods", "-l", "app=shop", "-o", "jsonpath={.items[*].spec.nodeName}"))
	slices.Sort(nodes)
	if nodes = slices.Compact(nodes); len(nodes) != 3 {
		t.Errorf("the application runs on %v, want three nodes", nodes)
	}
	e.fromEveryNode(t, http.MethodPost, "kept for ever")
	e.fromEveryNode(t, http.MethodGet, "")
	e.fromOutside(t)
}

// fromOutside uses the application from the engine's host, as the README says: by
// node port, and by the load balancer's address once there is a route to a node.
func (e *engine) fromOutside(t *testing.T) {
	t.Helper()
	node := strings.TrimSpace(e.must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", e.of(t, "node")[0].ID))
	if _, err := e.run(t.Context(), 10*time.Second, "ip", "route", "replace", "10.90.0.0/24", "via", node); err != nil {
		t.Fatal(err)
	}
	at := strings.Fields(e.kubectl(t, "-n", "demo", "get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip} {.spec.ports[0].nodePort}"))
	if len(at) != 2 {
		t.Fatalf("the Service web has %v, want an address and a node port", at)
	}
	for _, url := range []string{"http://" + at[0] + "/", "http://" + node + ":" + at[1] + "/"} {
		wait.For(t, time.Minute, url+" from the host", func(ctx context.Context) error {
			_, err := fetch(os.Getpid(), http.MethodGet, url, nil)
			return err
		})
	}
}

// fromEveryNode uses the application through its Service: the cluster IP and the
// load balancer's address, from each node's network.
func (e *engine) fromEveryNode(t *testing.T, method, note string) {
	t.Helper()
	at := strings.Fields(e.kubectl(t, "-n", "demo", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP} {.status.loadBalancer.ingress[0].ip}"))
	if len(at) != 2 {
		t.Fatalf("the Service web has the addresses %v, want two", at)
	}
	for _, node := range e.of(t, "node") {
		for _, address := range at {
			wait.For(t, time.Minute, method+" "+address+" from "+node.Name, func(ctx context.Context) error {
				url, body := "http://"+address+"/", io.Reader(nil)
				if method == http.MethodPost {
					url, body = url+"notes", strings.NewReader(note)
				}
				page, err := fetch(node.State.PID, method, url, body)
				if err == nil && method == http.MethodGet && !strings.Contains(page, "kept for ever") {
					err = fmt.Errorf("the note is not on the page: %s", page)
				}
				return err
			})
		}
	}
}

// fetch makes a request from the network of a process.
func fetch(pid int, method, url string, body io.Reader) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialIn(ctx, pid, network, address)
	}}
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", response.Status, page)
	}
	return string(page), err
}

// dialIn connects from a process' network: a socket belongs to the namespace of the thread
// that creates it.
func dialIn(ctx context.Context, pid int, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // without unlock: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			done <- result{err: err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: err}
			return
		}
		conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// leaders are the containers that hold the elected services' Leases.
func (e *engine) leaders(t *testing.T) []container {
	t.Helper()
	var out []container
	for _, service := range []string{"scheduler", "controller-manager", "cloud-controller"} {
		wait.For(t, time.Minute, "a container leads as "+service, func(ctx context.Context) error {
			holder, _, _ := strings.Cut(e.kubectl(t, "-n", "kube-system", "get", "lease", service, "-o", "jsonpath={.spec.holderIdentity}"), "_")
			all := e.of(t, service)
			i := slices.IndexFunc(all, func(c container) bool { return c.Config.Hostname == holder })
			if i < 0 {
				return fmt.Errorf("%q leads, which is no container", holder)
			}
			out = append(out, all[i])
			return nil
		})
	}
	return out
}

// testKills ends one container after the other by SIGKILL while both clients write.
func testKills(t *testing.T, e *engine) {
	l := e.load(t)
	wait.For(t, time.Minute, "the load writes", func(ctx context.Context) error {
		return errors.Join(l.byClient.Reaches(3)(ctx), l.byKubectl.Reaches(3)(ctx))
	})
	var gaps []time.Duration
	kill := func(c container) {
		t.Helper()
		began := time.Now()
		if err := syscall.Kill(c.State.PID, syscall.SIGKILL); err != nil {
			t.Fatalf("kill -9 of %s: %v", c.Name, err)
		}
		restarted := e.again(t, c).Sub(began)
		back := time.Since(began)
		byClient, byKubectl := l.goOn(t, "the kill of "+c.Name, began)
		gaps = append(gaps, byClient, byKubectl)
		t.Logf("%s killed: started after %s, ready after %s, no write for %s (Go client) and %s (kubectl)", c.Name,
			restarted.Round(10*time.Millisecond), back.Round(10*time.Millisecond), byClient.Round(time.Millisecond), byKubectl.Round(time.Millisecond))
	}
	if *rounds == 0 {
		for _, service := range []string{"apiserver-0", "apiserver-1", "apiserver-2", "balancer", "node"} {
			kill(e.of(t, service)[0])
		}
		for _, c := range e.leaders(t) {
			kill(c)
		}
	}
	for range *rounds {
		all, err := e.containers()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			kill(c)
		}
	}
	l.verify(t)
	slices.Sort(gaps)
	median, worst := gaps[len(gaps)/2], gaps[len(gaps)-1]
	t.Logf("%d kills: no write for %s in the median, %s at worst", len(gaps)/2, median.Round(time.Millisecond), worst.Round(time.Millisecond))
	if median > 2*time.Second || worst > 3*time.Second {
		t.Errorf("no write for %s in the median and %s at worst; want 2 s and 3 s at most", median, worst)
	}
	e.nodesReady(t, time.Minute, 3)
	e.fromEveryNode(t, http.MethodGet, "")
}

// testScale adds nodes and a scheduler to the running cluster, as .env says; a plain
// up afterwards changes nothing.
func testScale(t *testing.T, e *engine) {
	env, err := os.OpenFile(e.path("compose", ".env"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = env.WriteString("COMPOSE_PROFILES=node-3,node-4\nKEELSON_SCHEDULERS=3\n")
	if err := errors.Join(err, env.Close()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	before := e.running(t)
	e.compose(t, "up", "-d")
	e.nodesReady(t, 2*time.Minute, 5)
	t.Logf("five nodes were Ready after %s", time.Since(began).Round(100*time.Millisecond))
	if n := len(e.of(t, "scheduler")); n != 3 {
		t.Errorf("%d schedulers, want 3", n)
	}
	after := e.running(t)
	for id := range before {
		if !after[id] {
			t.Errorf("container %s was replaced", id)
		}
	}
	e.compose(t, "up", "-d")
	if again := e.running(t); !maps.Equal(again, after) {
		t.Errorf("a plain up changed the containers from %v to %v", after, again)
	}
}

// running are the ids of the lasting containers.
func (e *engine) running(t *testing.T) map[string]bool {
	t.Helper()
	all, err := e.containers()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, c := range all {
		ids[c.ID] = true
	}
	return ids
}

// testApart: each node has volumes of its own and a token for its own name.
func testApart(t *testing.T, e *engine) {
	owner := map[string]string{}
	for _, node := range e.of(t, "node") {
		for _, m := range node.Mounts {
			if m.Type != "volume" {
				continue
			}
			if other := owner[m.Name]; other != "" {
				t.Errorf("%s and %s share the volume %s", node.Name, other, m.Name)
			}
			owner[m.Name] = node.Name
		}
	}
	if len(owner) != 9 {
		t.Errorf("three nodes have %d volumes, want nine", len(owner))
	}
	tokens := strings.Fields(e.kubectl(t, "-n", "kube-system", "get", "secrets", "--field-selector=type=bootstrap.kubernetes.io/token", "-o",
		`jsonpath={range .items[*]}{.data.node-name}:{.data.single-use}{"\n"}{end}`))
	slices.Sort(tokens)
	if n := len(slices.Compact(slices.Clone(tokens))); n != 5 || len(tokens) != 5 {
		t.Errorf("tokens for %v, want five nodes once each", tokens)
	}
	for _, token := range tokens {
		if !strings.HasSuffix(token, ":dHJ1ZQ==") {
			t.Errorf("token %s may be used more than once", token)
		}
	}
}

// testOverlap: a node whose network overlaps the pods' range reports it and ends.
func testOverlap(t *testing.T, e *engine) {
	node := e.of(t, "node")[0]
	var overlap string
	for _, n := range node.NetworkSettings.Networks {
		overlap = n.IPAddress + "/24"
	}
	out, err := e.run(t.Context(), time.Minute, "docker-compose", "run", "--rm", "--no-deps", "-T", "node-4", "--name=node-4", "--cluster-cidr="+overlap)
	if err == nil || !strings.Contains(out+err.Error(), "overlaps the network") {
		t.Errorf("a node in the pods' range %s: %v\n%s", overlap, err, out)
	}
}

// testPaused: an apiserver that hangs does not delay kubectl's writes once the balancer has
// noticed.
func testPaused(t *testing.T, e *engine) {
	clock := pace.Start(t)
	paused := e.of(t, "apiserver-1")[0]
	e.must(t, "pause", paused.ID)
	defer e.must(t, "unpause", paused.ID)
	wait.For(t, 2*time.Minute, "ten writes in a row take less than two seconds each", func(ctx context.Context) error {
		for range 10 {
			began := time.Now()
			if _, err := e.run(ctx, 10*time.Second, "kubectl", "annotate", "--overwrite", "namespace", "default", "paused="+began.Format("150405.000")); err != nil {
				return err
			}
			if took := clock.Since(began); took > 2*time.Second {
				return fmt.Errorf("one took %s of the time that the machine gave", took)
			}
		}
		return nil
	})
}

// testNoQuorum: while two apiservers are paused, the other containers log at most five
// lines a second together.
func testNoQuorum(t *testing.T, e *engine) {
	for _, name := range []string{"apiserver-1", "apiserver-2"} {
		id := e.of(t, name)[0].ID
		e.must(t, "pause", id)
		defer e.must(t, "unpause", id)
	}
	const looked = 15 * time.Second
	began := time.Now()
	wait.Pause(t.Context(), looked)
	all, err := e.containers()
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, c := range all {
		cmd := exec.Command("docker", "logs", "--since", began.UTC().Format(time.RFC3339Nano), "--until", began.Add(looked).UTC().Format(time.RFC3339Nano), c.ID)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.path("sock"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			_, message, _ := strings.Cut(strings.TrimSpace(line), " msg=")
			said = append(said, c.service()+": "+message[:min(len(message), 80)])
		}
	}
	t.Logf("%d lines in %s without quorum", len(said), looked)
	if len(said) > 5*int(looked/time.Second) {
		t.Errorf("%d lines in %s without quorum, want at most five a second from all containers:\n%s", len(said), looked, strings.Join(said, "\n"))
	}
}

// logLine matches a line in the format of all services.
var logLine = regexp.MustCompile(`^time=\S+ level=\w+ msg=`)

// chatter are messages of libraries that no start should log, because they ask for nothing
// to be done.
var chatter = []string{
	"fsverity", "failed to load cni during init", "Running http and grpc server on single port",
	"simple token is not cryptographically signed", "Failed to detect schema version",
}

// testLogs: all containers log in one format, and none logs chatter.
func testLogs(t *testing.T, e *engine) {
	all, err := e.containers()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		cmd := exec.Command("docker", "logs", c.ID)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.path("sock"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for line := range strings.Lines(string(out)) {
			meaningless := slices.ContainsFunc(chatter, func(c string) bool { return strings.Contains(line, c) })
			if (!logLine.MatchString(line) || meaningless) && shown < 5 {
				shown++
				t.Errorf("%s: %s", c.Name, strings.TrimSpace(line))
			}
		}
	}
}

// testDownAndUp takes everything down except the volumes, and up again in another network.
func testDownAndUp(t *testing.T, e *engine) {
	address := func() string {
		return e.must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", e.of(t, "apiserver-0")[0].ID)
	}
	old, names := address(), e.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	// A node whose object is deleted joins again with the certificate in its volume.
	e.kubectl(t, "delete", "node", "node-4", "--wait=false")
	began := time.Now()
	e.compose(t, "down")
	t.Logf("down took %s", time.Since(began).Round(100*time.Millisecond))
	if left := strings.TrimSpace(e.must(t, "ps", "-aq")); left != "" {
		t.Errorf("containers are left: %s", left)
	}
	// It takes the range that the cluster had, so the cluster gets the next one.
	e.must(t, "network", "create", "taken")
	t.Cleanup(func() { _, _ = e.docker("network", "rm", "taken") })

	served := make(chan time.Time, 1)
	go func() {
		for t.Context().Err() == nil { // at a constant pace, because the time is measured
			if _, err := e.run(t.Context(), 5*time.Second, "kubectl", "annotate", "--overwrite", "namespace", "default", "up=again", "--request-timeout=1s"); err == nil {
				served <- time.Now()
				return
			}
			wait.Pause(t.Context(), 50*time.Millisecond)
		}
	}()
	clock := pace.Start(t)
	began = time.Now()
	e.compose(t, "up", "-d")
	var at time.Time
	select {
	case at = <-served:
	case <-time.After(time.Minute):
		t.Fatal("nothing could be written within a minute")
	}
	var last time.Time
	for _, name := range []string{"apiserver-0", "apiserver-1", "apiserver-2"} {
		if started := e.of(t, name)[0].State.StartedAt; started.After(last) {
			last = started
		}
	}
	t.Logf("kubectl wrote %s after the last apiserver's start, %s after up", at.Sub(last).Round(10*time.Millisecond), at.Sub(began).Round(10*time.Millisecond))
	if given := clock.Given(last, at); given > 5*time.Second {
		t.Errorf("served %s after the apiservers' start, of which the machine gave %s; want 5 s at most", at.Sub(last), given)
	}
	if now := address(); now == old {
		t.Errorf("apiserver-0 has its old address %s, so this test shows nothing", now)
	}
	e.nodesReady(t, 2*time.Minute, 5)
	t.Logf("five nodes were Ready again %s after up", time.Since(began).Round(100*time.Millisecond))
	if now := e.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"); now != names {
		t.Errorf("the nodes were %s and are %s", names, now)
	}
	e.fromEveryNode(t, http.MethodGet, "")
	t.Logf("the application served its data again %s after up", time.Since(began).Round(100*time.Millisecond))
}

// testEngineRestart stops the engine and starts it again, as a reboot would: the engine
// starts the containers in an order of its own.
func testEngineRestart(t *testing.T, e *engine) {
	e.stop(t)
	began := time.Now()
	e.start(t)
	e.nodesReady(t, 2*time.Minute, 5)
	e.fromEveryNode(t, http.MethodGet, "")
	t.Logf("the application served its data again %s after the engine's start", time.Since(began).Round(100*time.Millisecond))
}
