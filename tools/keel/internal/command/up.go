package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	memberv1 "keelson.dev/proto/keelson/member/v1"

	"keelson.dev/tools/internal/pki"
	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/process"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
	"keelson.dev/tools/keel/internal/sweep"
)

// up starts a cluster, or changes a running one to match the flags.
func (e *env) up() *cobra.Command {
	o := cluster.Options{}
	var otlp string
	var wait, drain time.Duration
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster, or change a running one to match the flags",
		Example: `  keel up                                            # three nodes, one apiserver
  keel up --nodes 5                                  # two more nodes
  keel up --home /var/lib/ha --apiservers 3 --nodes 1
  keel up --nodes 0 --simulated-nodes 1000           # no node that runs containers`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if o.Nodes < -1 || o.Nodes > cluster.MaxNodes {
				return usageError{fmt.Errorf("--nodes %d: expected 0 to %d", o.Nodes, cluster.MaxNodes)}
			}
			if o.Simulated < -1 || o.Port < 0 || o.Port > 65534 {
				return usageError{errors.New("--simulated-nodes and --port must not be negative, and --port must be below 65535")}
			}
			for _, taken := range []int{cluster.PeerPort, cluster.EtcdPort} {
				if o.Port == taken || o.Port+1 == taken {
					return usageError{fmt.Errorf("--port %d: members serve each other at port %d; choose another", o.Port, taken)}
				}
			}
			if o.APIServers < 0 || o.APIServers > 5 || o.APIServers > 0 && o.APIServers%2 == 0 {
				return usageError{fmt.Errorf("--apiservers %d: expected 1, 3 or 5", o.APIServers)}
			}
			if cmd.Flags().Changed("otlp-endpoint") {
				if err := checkEndpoint(otlp); err != nil {
					return usageError{fmt.Errorf("--otlp-endpoint %q: %w", otlp, err)}
				}
				o.OTLPEndpoint = &otlp
			}
			for _, f := range o.NodeFlags {
				if err := process.CheckNodeFlag(f); err != nil {
					return usageError{fmt.Errorf("--node-flag %q: %w", f, err)}
				}
			}
			o.Home = e.home
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			return e.bringUp(ctx, o, drain)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", -1, "`number` of nodes, each with its own container runtime (default 3 for a new cluster)")
	f.IntVar(&o.Simulated, "simulated-nodes", -1, "`number` of nodes that only pretend to run pods, for tests of scale (default 0)")
	for _, name := range []string{"nodes", "simulated-nodes"} {
		f.Lookup(name).DefValue = "0" // help must not show -1; the text names the default
	}
	f.IntVar(&o.Port, "port", 0, "the REST `port`; gRPC takes the next one (default: the first free pair from 6443)")
	f.IntVar(&o.APIServers, "apiservers", 0, "`number` of apiservers that replicate the state: 1, or 3 or 5 to survive the loss of one or two (default 1)")
	f.BoolVar(&o.Egress, "egress", false, "give nodes and pods a route out of this machine")
	f.StringArrayVar(&o.NodeFlags, "node-flag", nil, "`name=value` of a flag of the node service, for all nodes (eviction-hard=memory.available<200Mi); may be repeated, and replaces those of the last up; \"\" is none")
	f.StringVar(&otlp, "otlp-endpoint", "", "`host:port` of an OpenTelemetry collector (OTLP over gRPC) that also receives the spans; \"\" stops that")
	f.DurationVar(&drain, "drain-timeout", 45*time.Second, "how long the pods of removed nodes may take to terminate")
	f.DurationVar(&wait, "wait", 2*time.Minute, "how long to wait for everything to be ready")
	return cmd
}

// checkEndpoint returns an error unless endpoint is empty or host:port.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil || host == "" || strings.ContainsAny(host, "/@ ") {
		return errors.New("expected host:port, such as collector.example:4317")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q: expected a number from 1 to 65535", port)
	}
	return nil
}

func (e *env) bringUp(ctx context.Context, o cluster.Options, drain time.Duration) error {
	began := time.Now()
	if err := errors.Join(cluster.Trust(o.Home), cluster.Vacant(o.Home)); err != nil {
		return err
	}
	bin, err := programs()
	if err != nil {
		return err
	}
	unlock, err := e.alone(ctx, o.Home)
	if err != nil {
		return err
	}
	defer unlock()
	if o.Nodes < 0 {
		if _, err := cluster.Load(o.Home); errors.Is(err, cluster.ErrNone) {
			o.Nodes = 3
		}
	}
	o.Free = unused
	c, err := cluster.Open(o)
	if err != nil {
		return err
	}
	if err := c.Register(); err != nil {
		return err
	}
	if err := unfit(c); err != nil {
		return err
	}
	step := func(format string, args ...any) {
		e.say("%6.1fs  %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	for _, d := range []string{"run", "log", "images", filepath.Join("cloud", "instances")} {
		if err := os.MkdirAll(c.Path(d), 0o700); err != nil {
			return err
		}
	}
	if err := e.dismiss(ctx, c, drain, step); err != nil {
		return err
	}
	var progs runtime.Programs
	if len(c.Nodes) > 0 {
		if progs, err = runtime.Find(filepath.Join(bin, "runtime")); err == nil {
			err = progs.Check(ctx)
		}
		if err != nil {
			return err
		}
	}
	if err := certificates(c); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	if err := hostnet.Ensure(c); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := inventory(c); err != nil {
		return err
	}
	specs, err := process.Specs(c, bin, progs)
	if err != nil {
		return err
	}
	if err := c.KeepLedgers(); err != nil {
		return fmt.Errorf("ledgers of pods' logs: %w", err)
	}
	step("certificates, network and configuration of %s", c.Home)
	before := dir(c).Alive()
	if err := e.follow(ctx, c, specs, step); err != nil {
		return explain(ctx, c, err)
	}
	if err := e.importImages(ctx, c, progs, bin); err != nil {
		return explain(ctx, c, err)
	}
	left := slices.Clone(c.Members)
	changed, err := finishLeaving(c, step, func(name string) (bool, error) {
		others, err := dialOthers(c, name)
		if err != nil {
			return false, err
		}
		there, err := hasPlace(ctx, others, name)
		return there, errors.Join(err, others.Close())
	})
	if err != nil {
		return explain(ctx, c, err)
	}
	if changed {
		if specs, err = process.Specs(c, bin, progs); err != nil {
			return err
		}
		if err := e.follow(ctx, c, specs, step); err != nil {
			return explain(ctx, c, err)
		}
		for _, m := range left {
			if _, still := c.Member(m.Name); !still {
				if err := os.RemoveAll(c.Path(m.Name)); err != nil {
					return err
				}
			}
		}
	}
	if err := waitServices(ctx, c, step); err != nil {
		return explain(ctx, c, err)
	}
	step("%s", started(before, dir(c).Alive()))
	if err := e.forget(ctx, c, step); err != nil {
		return explain(ctx, c, err)
	}
	if err := waitNodes(ctx, c, step); err != nil {
		return explain(ctx, c, err)
	}
	if err := e.finishPeers(ctx, c); err != nil {
		return explain(ctx, c, err)
	}
	e.say("\nexport KUBECONFIG=%s", c.Kubeconfig())
	return nil
}

// unfit returns an error if the cluster's disks disagree, because a recovery was interrupted.
func unfit(c *cluster.Cluster) error {
	if c.Recovering == "" {
		return nil
	}
	return fmt.Errorf("a recovery from %s was interrupted: complete it with `keel member recover --from %s --home %s`", c.Recovering, c.Recovering, c.Home)
}

// started returns a text with the number of processes that were started and of those that were
// running before.
func started(before, now map[string]int) string {
	same := 0
	for name, pid := range now {
		if before[name] == pid {
			same++
		}
	}
	text := fmt.Sprintf("%s started", counted(len(now)-same, "process"))
	if same > 0 {
		text += fmt.Sprintf(", %d already running", same)
	}
	return text
}

// counted returns a number of things in words, such as "2 processes".
func counted(n int, thing string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(thing, "s"):
		thing += "es"
	default:
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// unused returns an error if an earlier cluster with the same id left something behind.
func unused(id string) error {
	left, err := sweep.Left(id, "")
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("parts of a cluster %s whose files are gone are still on this machine (%s): run `keel delete --id %s` first", id, left[0], id)
	}
	return err
}

// certificates creates what is missing of the cluster's PKI, and the kubeconfig.
func certificates(c *cluster.Cluster) error {
	a, err := pki.Open(c.Path("pki"))
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(c.Identity("apiserver"), "tls.crt"))
	existed := err == nil
	ids, err := process.Identities(c)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := a.Ensure(id); err != nil {
			return fmt.Errorf("%s: %w", id.Name, err)
		}
	}
	if c.Simulated == 0 {
		// The simulator's identity is allowed everything, so it exists only while it is used.
		if err := os.RemoveAll(c.Identity(process.Simulator)); err != nil {
			return err
		}
	}
	if err := pki.EnsurePeers(c.Path("pki", "peer-authority"), c.Identity("apiserver"), existed); err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	if err := pki.EnsureKey(c.Path("pki", "sa.key")); err != nil {
		return err
	}
	return writeKubeconfig(c)
}

// finishPeers completes an upgrade: once all apiservers have certificates of the peer
// authority, they accept each other only by that.
func (e *env) finishPeers(ctx context.Context, c *cluster.Cluster) error {
	if _, ok := pki.TransitionSince(c.Identity("apiserver")); !ok {
		return nil
	}
	if len(c.Members) > 0 {
		elsewhere, err := foreignMembers(ctx, c)
		if err != nil {
			return fmt.Errorf("peers: %w", err)
		}
		if len(elsewhere) > 0 {
			e.say("apiservers elsewhere may have no peer certificates yet, so the peer ports still accept the cluster's authority:\ncopy %s to %s, upgrade and restart them, then remove the file accept-cluster-authority from every copy of it",
				filepath.Join(c.Identity("apiserver"), "peer"), strings.Join(elsewhere, ", "))
			return nil
		}
	}
	return pki.FinishPeers(c.Identity("apiserver"))
}

// foreignMembers returns the names of the members that are not processes of this home.
func foreignMembers(ctx context.Context, c *cluster.Cluster) (names []string, err error) {
	conn, err := dial(c)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	all, err := memberv1.NewMemberServiceClient(conn).List(ctx, &memberv1.ListRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, said(err)
	}
	for _, m := range all.Members {
		if _, ok := c.Member(m.Name); !ok {
			names = append(names, m.Name)
		}
	}
	return names, nil
}

// instance is a machine in the format that the cloud-controller's local provider reads.
type instance struct {
	Name         string    `json:"name"`
	ProviderID   string    `json:"providerID"`
	Zone         string    `json:"zone"`
	Region       string    `json:"region"`
	InstanceType string    `json:"instanceType"`
	Addresses    []address `json:"addresses"`
	Shutdown     bool      `json:"shutdown"`
}

type address struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

// inventory writes the entries of this cluster's nodes, and removes those of nodes that left.
func inventory(c *cluster.Cluster) error {
	at := c.Path("cloud", "instances")
	for _, n := range c.Nodes {
		data, err := json.MarshalIndent(instance{
			Name: n.Name, ProviderID: "local://" + c.ID + "/" + n.Name,
			Zone: n.Zone, Region: "local", InstanceType: "namespace",
			Addresses: []address{{"InternalIP", n.IP}, {"Hostname", n.Name}},
		}, "", "  ")
		if err != nil {
			return err
		}
		if err := cluster.WriteFile(filepath.Join(at, n.Name+".json"), data, 0o600); err != nil {
			return err
		}
	}
	files, err := os.ReadDir(at)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".json")
		if strings.HasPrefix(name, "node-") && !slices.ContainsFunc(c.Nodes, func(n cluster.Node) bool { return n.Name == name }) {
			if err := os.Remove(filepath.Join(at, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// importImages imports the sandbox image, and the images that `keel image load` has kept, into
// nodes that lack them.
func (e *env) importImages(ctx context.Context, c *cluster.Cluster, progs runtime.Programs, bin string) error {
	files, err := filepath.Glob(c.Path("images", "*.tar"))
	if err != nil {
		return err
	}
	files = append([]string{filepath.Join(bin, "runtime", "pause.tar")}, files...)
	errs := make([]error, len(c.Nodes))
	var wg sync.WaitGroup
	for i, n := range c.Nodes {
		wg.Go(func() { errs[i] = importInto(ctx, c, progs, n.Name, files) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func importInto(ctx context.Context, c *cluster.Cluster, progs runtime.Programs, node string, files []string) error {
	if err := runtime.WaitReady(ctx, runtime.Socket(c, node)); err != nil {
		return fmt.Errorf("containerd-%s: %w", node, err)
	}
	for _, f := range files {
		mark := c.Path("nodes", node, "containerd", "imported-"+filepath.Base(f))
		if newer(mark, f) {
			continue
		}
		if _, err := runtime.Import(ctx, progs, c, node, f); err != nil {
			return fmt.Errorf("containerd-%s: %w", node, err)
		}
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// newer reports whether file a exists and was modified after file b.
func newer(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && sa.ModTime().After(sb.ModTime())
}

// waitServices waits until every process is healthy.
func waitServices(ctx context.Context, c *cluster.Cluster, step func(string, ...any)) error {
	seen := map[string]bool{}
	for {
		list, err := dir(c).Status(ctx)
		if err != nil {
			return err
		}
		var waiting *supervise.Status
		for i, s := range list {
			if s.Healthy && !seen[s.Name] {
				seen[s.Name] = true
				step("%s is ready", s.Name)
			}
			if !s.Healthy && waiting == nil {
				waiting = &list[i]
			}
		}
		if waiting == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return &notReady{*waiting}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// notReady reports that a service did not become ready in time.
type notReady struct{ supervise.Status }

func (n *notReady) Error() string {
	return fmt.Sprintf("%s is not ready: %s", n.Name, firstLine(n.Reason))
}

// explain adds the last log lines of a service that is not healthy, and what to do.
func explain(ctx context.Context, c *cluster.Cluster, err error) error {
	var n *notReady
	if !errors.As(err, &n) {
		status, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		list, statusErr := dir(c).Status(status)
		if statusErr != nil {
			return hinted(err, "try again with `keel up --home %s`", c.Home)
		}
		i := slices.IndexFunc(list, func(s supervise.Status) bool { return !s.Healthy })
		if i < 0 {
			return hinted(err, "try again with `keel up --home %s`", c.Home)
		}
		n = &notReady{list[i]}
	}
	return fmt.Errorf("%w\n\nlast lines of %s:\n%s\nThe cluster keeps trying: watch it with `keel status --home %s`, wait again with `keel up`, or remove it with `keel delete`", err, n.Log, tail(n.Log, 10), c.Home)
}

// hinted appends advice to an error that does not already contain a keel command.
func hinted(err error, format string, args ...any) error {
	if err == nil || strings.Contains(err.Error(), "`keel ") || errors.As(err, new(usageError)) {
		return err
	}
	return fmt.Errorf("%w; %s", err, fmt.Sprintf(format, args...))
}

// tail returns the last lines of a file, indented.
func tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error() + "\n"
	}
	defer f.Close()
	const window = 16 << 10
	if st, err := f.Stat(); err == nil && st.Size() > window {
		_, _ = f.Seek(-window, io.SeekEnd)
	}
	data, _ := io.ReadAll(f)
	all := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	all = all[max(0, len(all)-lines):]
	return "  " + string(bytes.Join(all, []byte("\n  "))) + "\n"
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
