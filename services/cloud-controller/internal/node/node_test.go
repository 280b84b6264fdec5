package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/cloud-controller/internal/provider/providertest"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testNode(edits ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-0", Labels: map[string]string{"mine": "kept"}}}
	n.Spec.Taints = []corev1.Taint{
		{Key: uninitialized, Value: "true", Effect: corev1.TaintEffectNoSchedule},
		{Key: "other", Effect: corev1.TaintEffectNoSchedule},
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.9"}, {Type: corev1.NodeHostName, Address: "node-0"}}
	for _, edit := range edits {
		edit(n)
	}
	return n
}

func machine() provider.Instance {
	return provider.Instance{
		ProviderID: "local://c/node-0", Zone: "zone-a", Region: "here", InstanceType: "namespace",
		Addresses: []provider.Address{{Type: "InternalIP", Address: "10.89.0.11"}, {Type: "InternalIP", Address: "10.89.1.11"}},
	}
}

func TestInitialized(t *testing.T) {
	t.Parallel()
	n := initialized(testNode(), machine())
	if n.Spec.ProviderID != "local://c/node-0" || len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != "other" {
		t.Errorf("spec: %+v", n.Spec)
	}
	for key, want := range map[string]string{
		"mine": "kept", corev1.LabelTopologyZone: "zone-a", corev1.LabelTopologyRegion: "here", corev1.LabelInstanceTypeStable: "namespace",
	} {
		if n.Labels[key] != want {
			t.Errorf("label %s: %q, want %q", key, n.Labels[key], want)
		}
	}
	if again := initialized(n, machine()); again != nil {
		t.Errorf("a second time: %+v", again)
	}
	// A provider id that is set stays; what the machine does not say is left.
	n = initialized(testNode(func(n *corev1.Node) { n.Spec.ProviderID = "local://c/old" }), provider.Instance{ProviderID: "local://c/new"})
	if n.Spec.ProviderID != "local://c/old" || len(n.Labels) != 1 {
		t.Errorf("%+v", n)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	text := func(list []corev1.NodeAddress) (out []string) {
		for _, a := range list {
			out = append(out, string(a.Type)+" "+a.Address)
		}
		return out
	}
	for _, row := range []struct {
		name string
		node *corev1.Node
		i    provider.Instance
		want []string
	}{
		{"the cloud's, and the node's own name", testNode(), machine(), []string{"InternalIP 10.89.0.11", "InternalIP 10.89.1.11", "Hostname node-0"}},
		{"the address that the agent was given first", testNode(func(n *corev1.Node) { n.Annotations = map[string]string{providedIP: "10.89.1.11"} }), machine(),
			[]string{"InternalIP 10.89.1.11", "InternalIP 10.89.0.11", "Hostname node-0"}},
		{"the cloud's name wins", testNode(), provider.Instance{Addresses: []provider.Address{{Type: "Hostname", Address: "cloudy"}, {Type: "Hostname", Address: "cloudy"}, {Type: "InternalIP"}}},
			[]string{"Hostname cloudy"}},
	} {
		if got := text(addresses(row.node, row.i)); !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

func start(t *testing.T) (*client.Client, *providertest.Fake) {
	t.Helper()
	c, cloud := clienttest.Start(t), providertest.NewFake()
	nodes := client.NewCache(c, client.CacheOptions[*corev1.Node]{})
	events := event.NewRecorder(c, "cloud-controller", "test")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{nodes.Run, events.Run, func(ctx context.Context) error {
		return controller.Run(ctx, New(c, nodes, cloud, events).Controller())
	}} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c, cloud
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s: %v", what, err)
		}
		<-tick.C
	}
}

func TestANodeIsInitialized(t *testing.T) {
	t.Parallel()
	c, cloud := start(t)
	cloud.Machine("node-0", machine())
	nodes := client.For[*corev1.Node](c)
	if _, err := nodes.Create(t.Context(), testNode()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is initialized", func() error {
		n, err := nodes.Get(t.Context(), "", "node-0")
		if err != nil {
			return err
		}
		if waits(n) || n.Spec.ProviderID == "" || n.Labels[corev1.LabelTopologyZone] != "zone-a" || n.Status.Addresses[0].Address != "10.89.0.11" {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	t.Parallel()
	c, cloud := start(t)
	nodes := client.For[*corev1.Node](c)
	foreign := testNode(func(n *corev1.Node) { n.Name, n.Spec.ProviderID = "foreign", "aws://i-1" })
	simulatedNode := testNode(func(n *corev1.Node) { n.Name, n.Labels = "simulated", map[string]string{simulatedLabel: "true"} })
	unknown := testNode(func(n *corev1.Node) { n.Name = "unknown" })
	for _, n := range []*corev1.Node{foreign, simulatedNode, unknown} {
		cloud.Machine("simulated", machine())
		if _, err := nodes.Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	events := client.For[*corev1.Event](c)
	eventually(t, "the unknown machine is reported", func() error {
		list, _, err := events.List(t.Context(), client.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Reason == "InstanceNotFound" && e.InvolvedObject.Name == "unknown" {
				return nil
			}
		}
		return errors.New("no event")
	})
	for _, name := range []string{"foreign", "simulated", "unknown"} {
		n, err := nodes.Get(t.Context(), "", name)
		if err != nil || !waits(n) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}

// A node that came back with another address is looked at, and a heartbeat is not.
func TestNodesWithAnotherAddressAreLookedAt(t *testing.T) {
	old := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-0", Annotations: map[string]string{providedIP: "10.0.0.2"}}, Spec: corev1.NodeSpec{ProviderID: "local://node-0"}}
	beat, moved := old.DeepCopy(), old.DeepCopy()
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	moved.Annotations[providedIP] = "10.0.0.3"
	if keys := onNode(client.Event[*corev1.Node]{Type: client.Modified, Object: beat, Old: old}); len(keys) != 0 {
		t.Errorf("a heartbeat: %v", keys)
	}
	if keys := onNode(client.Event[*corev1.Node]{Type: client.Modified, Object: moved, Old: old}); len(keys) != 1 {
		t.Errorf("another address: %v", keys)
	}
}
