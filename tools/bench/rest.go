package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// callers is the number of concurrent callers of most figures.
const callers = 64

// fill creates n pods, and returns their namespace and the rate.
func (b *bench) fill(ctx context.Context, c *kubernetes.Clientset, n int) (string, float64, error) {
	ns, err := b.namespace(ctx, c)
	if err != nil {
		return "", 0, err
	}
	r, err := b.rate(ctx, callers, n, func(ctx context.Context, i int) error {
		_, err := c.CoreV1().Pods(ns).Create(ctx, pod(ns, fmt.Sprintf("p-%05d", i)), metav1.CreateOptions{})
		return err
	})
	return ns, r, err
}

func (b *bench) rest(ctx context.Context) (*kubernetes.Clientset, error) {
	if err := b.need(ctx); err != nil {
		return nil, err
	}
	return b.clientset()
}

func restCreate(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	_, r, err := b.fill(ctx, c, 10000)
	return r, "10,000 pods, 64 callers", err
}

func restGet(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, _, err := b.fill(ctx, c, 100)
	if err != nil {
		return 0, "", err
	}
	r, err := b.rate(ctx, callers, 30000, func(ctx context.Context, i int) error {
		_, err := c.CoreV1().Pods(ns).Get(ctx, fmt.Sprintf("p-%05d", i%100), metav1.GetOptions{})
		return err
	})
	return r, "30,000 gets, 64 callers", err
}

func restPatch(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, _, err := b.fill(ctx, c, 1000)
	if err != nil {
		return 0, "", err
	}
	r, err := b.rate(ctx, callers, 10000, func(ctx context.Context, i int) error {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"bench":"%d"}}}`, i)
		_, err := c.CoreV1().Pods(ns).Patch(ctx, fmt.Sprintf("p-%05d", i%1000), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	})
	return r, "10,000 merge patches, 64 callers", err
}

// restUpdate replaces pods with the version that the caller read last.
func restUpdate(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, _, err := b.fill(ctx, c, callers*10)
	if err != nil {
		return 0, "", err
	}
	list, err := c.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, "", err
	}
	// A pod is in one caller's hands at a time.
	free := make(chan *corev1.Pod, len(list.Items))
	for i := range list.Items {
		free <- &list.Items[i]
	}
	r, err := b.rate(ctx, callers, 10000, func(ctx context.Context, i int) error {
		p := <-free
		p.Annotations = map[string]string{"bench": strconv.Itoa(i)}
		got, err := c.CoreV1().Pods(ns).Update(ctx, p, metav1.UpdateOptions{})
		if err == nil {
			free <- got
		}
		return err
	})
	return r, "10,000 updates, 64 callers", err
}

func restList(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, _, err := b.fill(ctx, c, 5000)
	if err != nil {
		return 0, "", err
	}
	_, err = b.rate(ctx, 4, 60, func(ctx context.Context, _ int) error {
		list, err := c.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(list.Items) != 5000 {
			return fmt.Errorf("the list has %d pods, expected 5000", len(list.Items))
		}
		return nil
	})
	return float64(b.latest.p50.Milliseconds()), "5,000 pods, 4 callers, decoded", err
}

func restLease(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, err := b.namespace(ctx, c)
	if err != nil {
		return 0, "", err
	}
	leases := make([]*coordinationv1.Lease, callers*4)
	holder := "bench"
	for i := range leases {
		leases[i], err = c.CoordinationV1().Leases(ns).Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("l-%d", i)},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder},
		}, metav1.CreateOptions{})
		if err != nil {
			return 0, "", err
		}
	}
	// Each caller renews its own leases, as nodes do.
	var wg sync.WaitGroup
	errs := make([]error, callers)
	const each = 150
	renewals := make([]time.Duration, callers*each)
	before := b.cpu()
	began := time.Now()
	for w := range callers {
		wg.Go(func() {
			for n := range each {
				i := w*4 + n%4
				now := metav1.NowMicro()
				leases[i].Spec.RenewTime = &now
				called := time.Now()
				lease, err := c.CoordinationV1().Leases(ns).Update(ctx, leases[i], metav1.UpdateOptions{})
				renewals[w*each+n] = time.Since(called)
				if err != nil {
					errs[w] = err
					return
				}
				leases[i] = lease
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, "", err
		}
	}
	took := time.Since(began)
	b.latest.cost = (b.cpu() - before) / (callers * each)
	b.quantiles(renewals)
	return callers * each / took.Seconds(), "updates, 64 callers", nil
}

func restDelete(ctx context.Context, b *bench) (float64, string, error) {
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, _, err := b.fill(ctx, c, 10000)
	if err != nil {
		return 0, "", err
	}
	r, err := b.rate(ctx, callers, 10000, func(ctx context.Context, i int) error {
		return c.CoreV1().Pods(ns).Delete(ctx, fmt.Sprintf("p-%05d", i), metav1.DeleteOptions{})
	})
	return r, "10,000 deletes, 64 callers", err
}

// restWatch counts the events per second that 200 client-go watchers on one connection decode
// while 64 callers write.
func restWatch(ctx context.Context, b *bench) (float64, string, error) {
	const watchers, writes = 200, 2000
	c, err := b.rest(ctx)
	if err != nil {
		return 0, "", err
	}
	ns, _, err := b.fill(ctx, c, 100)
	if err != nil {
		return 0, "", err
	}
	list, err := c.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	watching, err := b.clientset()
	if err != nil {
		return 0, "", err
	}
	var wg sync.WaitGroup
	errs := make([]error, watchers)
	for i := range watchers {
		w, err := watching.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
		if err != nil {
			return 0, "", err
		}
		wg.Go(func() {
			defer w.Stop()
			for range writes {
				if _, ok := <-w.ResultChan(); !ok {
					errs[i] = fmt.Errorf("watcher %d was cut off", i)
					return
				}
			}
		})
	}
	began := time.Now()
	before := b.cpu()
	_, err = b.rate(ctx, callers, writes, func(ctx context.Context, i int) error {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"bench":"%d"}}}`, i)
		_, err := c.CoreV1().Pods(ns).Patch(ctx, fmt.Sprintf("p-%05d", i%100), types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return 0, "", err
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, "", err
		}
	}
	b.latest.cost = (b.cpu() - before) / (watchers * writes)
	return watchers * writes / time.Since(began).Seconds(), "200 client-go watchers, one connection", nil
}
