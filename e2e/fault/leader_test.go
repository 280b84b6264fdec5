package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

// kubectl writes with kubectl through the balancer that `keel up` starts in front of several
// apiservers, with one kubeconfig for all.
type kubectl struct {
	program, config, file string
}

// newKubectl starts the balancer, which runs until ctx ends.
func (c *Cluster) newKubectl(ctx context.Context, t *testing.T, kind string) *kubectl {
	t.Helper()
	bin := programs(t)
	k := &kubectl{program: filepath.Join(bin, "runtime", "kubectl"), config: filepath.Join(root, "kubeconfig"), file: filepath.Join(root, "object-"+kind+".json")}
	if _, err := os.Stat(k.program); err != nil {
		if k.program, err = exec.LookPath("kubectl"); err != nil {
			t.Fatalf("%v: run `make runtime`", err)
		}
	}
	listen := fmt.Sprintf("%s:%d", c.Network.Addr(c.Network.Clients()), portHTTPS)
	balancer := exec.CommandContext(ctx, filepath.Join(bin, "keel"), "balance", "--listen", listen, "--to", strings.Join(c.https(), ","), "--ca", c.pki.path("ca.crt"))
	if err := balancer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = balancer.Process.Kill(); _ = balancer.Wait() })
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://%s","certificate-authority":%q}}],
"users":[{"name":"u","user":{"client-certificate":%q,"client-key":%q}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`,
		listen, c.pki.path("ca.crt"), c.pki.path("admin", "tls.crt"), c.pki.path("admin", "tls.key"))
	if err := os.WriteFile(k.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return k
}

// create creates an object.
func (k *kubectl) create(ctx context.Context, obj any) error {
	data, err := json.Marshal(obj)
	if err != nil {
		return err
	}
	if err := os.WriteFile(k.file, data, 0o600); err != nil {
		return err
	}
	// --request-timeout ends it, so that it reports what went wrong.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), k.program, "create", "--validate=false", "--request-timeout=1s", "-f", k.file)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.config, "HOME="+root, "NO_PROXY=*", "no_proxy=*")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.New(string(out))
	}
	return nil
}

// TestLeadersOfTheStores kills the leader of etcd repeatedly, and then that of raft, and
// measures for how long nothing could be written to that store.
func TestLeadersOfTheStores(t *testing.T) {
	c := start(t, programs(t))
	all, err := c.Dial(c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	t.Run("etcd", func(t *testing.T) { killLeaders(t, c, all, "lasting", configMaps) })
	t.Run("raft", func(t *testing.T) { killLeaders(t, c, all, "transient", leases) })
}

func killLeaders[T object](t *testing.T, c *Cluster, all *client.Client, store string, k kindOf[T]) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ctl := c.newKubectl(ctx, t, k.kind)
	acknowledged := map[string]bool{}
	var mu sync.Mutex
	writer := func(name string, create func(ctx context.Context, obj T) error) *Probe {
		return &Probe{Name: name, write: func(ctx context.Context, n int) error {
			meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s-%d", name, n)}
			err := create(ctx, k.make(meta, "x"))
			if err == nil {
				mu.Lock()
				acknowledged[meta.Name] = true
				mu.Unlock()
			}
			return err
		}}
	}
	probes := []*Probe{
		writer("go", func(ctx context.Context, obj T) error { _, err := client.For[T](all).Create(ctx, obj); return err }),
		writer("kubectl", func(ctx context.Context, obj T) error { return ctl.create(ctx, obj) }),
	}
	var work sync.WaitGroup
	for _, p := range probes {
		work.Go(func() { p.run(ctx) })
	}
	gaps := map[string][]time.Duration{}
	for round := range *rounds {
		wait.For(t, 30*time.Second, fmt.Sprintf("round %d: both clients write", round), func(context.Context) error {
			for _, p := range probes {
				if !p.since(time.Now().Add(-time.Second)) {
					return fmt.Errorf("%s does not write: %v", p.Name, p.failures())
				}
			}
			return nil
		})
		var leader *Member
		wait.For(t, 30*time.Second, fmt.Sprintf("round %d: a member leads", round), func(ctx context.Context) error {
			if leader = c.Leader(ctx, store); leader == nil {
				return errors.New("no member leads")
			}
			return nil
		})
		began := time.Now()
		leader.Kill()
		if err := c.Whole(ctx, wholeTime); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		whole := time.Since(began)
		for _, p := range probes {
			wait.For(t, time.Minute, fmt.Sprintf("round %d: %s writes again", round, p.Name), func(context.Context) error {
				if !p.since(began.Add(time.Second)) {
					return fmt.Errorf("the failures are %v", p.failures())
				}
				return nil
			})
			gaps[p.Name] = append(gaps[p.Name], p.Gap(began, time.Now()))
		}
		t.Logf("round %d: %s was killed and was back after %.1fs; no write for %.2fs (Go client) and %.2fs (kubectl)",
			round, leader.Name, whole.Seconds(), gaps["go"][round].Seconds(), gaps["kubectl"][round].Seconds())
	}
	cancel()
	work.Wait()
	for _, p := range probes {
		took := gaps[p.Name]
		slices.Sort(took)
		median, worst := took[len(took)/2], took[len(took)-1]
		t.Logf("%s: %d kills, no write for %.2fs in the median, %.2fs at worst", p.Name, len(took), median.Seconds(), worst.Seconds())
		if median > 2*time.Second || worst > 3*time.Second {
			t.Errorf("%s: want 2 s in the median and 3 s at worst", p.Name)
		}
	}
	list, _, err := client.For[T](all).List(t.Context(), client.ListOptions{Namespace: metav1.NamespaceDefault})
	if err != nil {
		t.Fatal(err)
	}
	for _, obj := range list {
		delete(acknowledged, obj.GetName())
	}
	for name := range acknowledged {
		t.Errorf("%s was acknowledged but is lost", name)
	}
}
