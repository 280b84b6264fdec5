package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// scheduleREST starts a whole control plane with 1,000 simulated nodes. It measures the time
// from the first create of 5,000 pods to the last binding. All requests use REST.
func scheduleREST(ctx context.Context, b *bench) (perSecond float64, note string, err error) {
	const nodes, pods = 1000, 5000
	b.stop() // the whole machine is for the control plane now
	home := filepath.Join(b.dir, "cluster")
	keel := func(args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "keel"), append(args, "--home", home)...)
		cmd.Stderr = os.Stderr
		return cmd.Run()
	}
	defer func() {
		if e := keel("delete"); e != nil && err == nil {
			err = e
		}
	}()
	if err := keel("up", "--nodes", "0", "--simulated-nodes", fmt.Sprint(nodes)); err != nil {
		return 0, "", err
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(home, "kubeconfig"))
	if err != nil {
		return 0, "", err
	}
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return 0, "", err
	}
	for {
		list, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return 0, "", err
		}
		ready := 0
		for i := range list.Items {
			for _, cond := range list.Items[i].Status.Conditions {
				if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue && len(list.Items[i].Spec.Taints) == 0 {
					ready++
				}
			}
		}
		if ready == nodes {
			break
		}
		select {
		case <-ctx.Done():
			return 0, "", ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	const ns = "default"
	start, err := c.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, "", err
	}
	w, err := c.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{ResourceVersion: start.ResourceVersion})
	if err != nil {
		return 0, "", err
	}
	defer w.Stop()
	bound := make(chan error, 1)
	go func() {
		seen := map[string]bool{}
		for e := range w.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok && p.Spec.NodeName != "" {
				seen[p.Name] = true
			}
			if len(seen) == pods {
				bound <- nil
				return
			}
		}
		bound <- fmt.Errorf("the watch ended after %d of %d bindings", len(seen), pods)
	}()
	began := time.Now()
	if _, err := rateOf(ctx, c, ns, pods); err != nil {
		return 0, "", err
	}
	created := time.Since(began)
	select {
	case err := <-bound:
		if err != nil {
			return 0, "", err
		}
	case <-time.After(2 * time.Minute):
		return 0, "", fmt.Errorf("%d pods were not bound within two minutes", pods)
	case <-ctx.Done():
		return 0, "", ctx.Err()
	}
	return pods / time.Since(began).Seconds(), fmt.Sprintf("5,000 pods, 1,000 simulated nodes; all created after %.1fs", created.Seconds()), nil
}

func rateOf(ctx context.Context, c *kubernetes.Clientset, ns string, n int) (float64, error) {
	return rate(ctx, callers, n, func(ctx context.Context, i int) error {
		_, err := c.CoreV1().Pods(ns).Create(ctx, pod(ns, fmt.Sprintf("s-%05d", i)), metav1.CreateOptions{})
		return err
	})
}
