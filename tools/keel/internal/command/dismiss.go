package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/supervise"
	"keelson.dev/tools/keel/internal/sweep"
)

// A leaving node is cordoned and drained while it is running, then stopped together with
// everything that its pods started, and finally its Node is removed. cluster.json names it
// until all of this is done, so that the next `keel up` continues an interrupted removal.

// dismiss drains the leaving nodes for at most patience, stops them, and removes what they had
// on this machine. forget removes their Nodes.
func (e *env) dismiss(ctx context.Context, c *cluster.Cluster, patience time.Duration, step func(string, ...any)) error {
	if len(c.Leaving) == 0 {
		return nil
	}
	if _, err := dir(c).Status(ctx); err == nil {
		step("%s: draining, for at most %s", names(c.Leaving), patience)
		if err := drain(ctx, c, patience); err != nil {
			fmt.Fprintf(e.err, "keel: %v; stopping what is still running there\n", err)
		}
	}
	have, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	goes := map[string]bool{}
	for _, n := range c.Leaving {
		goes[n.Name], goes["containerd-"+n.Name] = true, true
	}
	rest := slices.DeleteFunc(slices.Clone(have), func(s supervise.Spec) bool { return goes[s.Name] })
	if len(rest) < len(have) {
		// If no supervisor is running, start one first: it adopts the processes that it then
		// stops.
		if dir(c).AnyAlive() {
			if err := e.supervised(ctx, c, have); err != nil {
				return err
			}
			if err := e.supervised(ctx, c, rest); err != nil {
				return err
			}
		} else if err := dir(c).WriteSpecs(rest); err != nil {
			return err
		}
	}
	for _, n := range c.Leaving {
		if err := clearNode(ctx, c, n); err != nil {
			return fmt.Errorf("remove what %s had on this machine: %w; repeat `keel up --home %s` to continue", n.Name, err, c.Home)
		}
	}
	step("%s: stopped and removed from this machine", names(c.Leaving))
	return nil
}

func names(nodes []cluster.Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	return strings.Join(out, ", ")
}

// clearNode removes what a stopped node had on this machine.
func clearNode(ctx context.Context, c *cluster.Cluster, n cluster.Node) error {
	at := c.Path("nodes", n.Name)
	sockets := sweep.ShimSockets(at)
	err := sweep.KillIn(ctx, c.CgroupRoot(n.Name), c.ProcessCgroup(n.Name), c.ProcessCgroup("containerd-"+n.Name))
	err = errors.Join(err, sweep.RemoveSockets(sockets), sweep.Unmount(at), hostnet.RemoveNode(c, n), cleanLogs(ctx, c.Path("nodes", n.Name, "agent")))
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(at), os.RemoveAll(c.Identity(n.Name)), os.RemoveAll(cluster.Records(c.ID, n.Name)))
}

// drain cordons the leaving nodes and deletes their pods, on all nodes at the same time, until
// none is left or patience has passed.
func drain(ctx context.Context, c *cluster.Cluster, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	api := client.New(conn, "keel")
	errs := make([]error, len(c.Leaving))
	var wg sync.WaitGroup
	for i, n := range c.Leaving {
		wg.Go(func() {
			if err := drainNode(ctx, api, n.Name); err != nil {
				errs[i] = fmt.Errorf("drain %s: %w", n.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// drainNode cordons one node and deletes its pods until none is left.
func drainNode(ctx context.Context, api *client.Client, name string) error {
	_, err := client.For[*corev1.Node](api).Patch(ctx, "", name, types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`))
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	pods := client.For[*corev1.Pod](api)
	asked := map[types.UID]bool{}
	for {
		left, err := podsOf(ctx, api, name)
		if err == nil && len(left) == 0 {
			return nil
		}
		var still []string
		for _, p := range left {
			still = append(still, p.Namespace+"/"+p.Name)
			if asked[p.UID] {
				continue
			}
			if err = pods.Delete(ctx, p.Namespace, p.Name); err == nil || apierrors.IsNotFound(err) {
				asked[p.UID] = true
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err, fmt.Errorf("pods are still running: %s", strings.Join(still, ", ")))
		}
	}
}

// podsOf returns the pods of a node that have not terminated.
func podsOf(ctx context.Context, api *client.Client, node string) ([]*corev1.Pod, error) {
	all, _, err := client.For[*corev1.Pod](api).List(ctx, client.ListOptions{FieldSelector: "spec.nodeName=" + node})
	return slices.DeleteFunc(all, func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	}), err
}

// forget removes the Nodes of the nodes that have left, and their remaining pods, which no node
// runs any more.
func (e *env) forget(ctx context.Context, c *cluster.Cluster, step func(string, ...any)) error {
	if len(c.Leaving) == 0 {
		return nil
	}
	conn, err := dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	api := client.New(conn, "keel")
	for _, n := range c.Leaving {
		if slices.ContainsFunc(c.Nodes, func(x cluster.Node) bool { return x.Name == n.Name }) {
			_, err := client.For[*corev1.Node](api).Patch(ctx, "", n.Name, types.MergePatchType, []byte(`{"spec":{"unschedulable":null}}`))
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("node %s, which was added again: %w", n.Name, err)
			}
			continue
		}
		all, _, err := client.For[*corev1.Pod](api).List(ctx, client.ListOptions{FieldSelector: "spec.nodeName=" + n.Name})
		if err != nil {
			return fmt.Errorf("list the pods of %s: %w", n.Name, err)
		}
		for _, p := range all {
			err := client.For[*corev1.Pod](api).Delete(ctx, p.Namespace, p.Name, client.Grace(0))
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete pod %s/%s, whose node was removed: %w", p.Namespace, p.Name, err)
			}
		}
		if err := client.For[*corev1.Node](api).Delete(ctx, "", n.Name); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete node %s: %w", n.Name, err)
		}
	}
	step("removed from the cluster: %s", names(c.Leaving))
	c.Leaving = nil
	return c.Save()
}
