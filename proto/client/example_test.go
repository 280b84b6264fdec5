package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net"
	"os"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
)

// start serves an empty cluster in memory and returns a client of it.
func start() (c *client.Client, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	end := clienttest.NewServer().Serve(l)
	c, err = client.Dial(client.Config{Endpoints: []string{l.Addr().String()}, UserAgent: "example/1"})
	if err != nil {
		log.Fatal(err)
	}
	return c, func() {
		if err := c.Close(); err != nil {
			log.Print(err)
		}
		end()
	}
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Data:       map[string]string{"key": value},
	}
}

// must ends the example if err is not nil.
func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A pod lists the pods of its namespace, over gRPC on the port that kubectl uses, with
// the token of its service account.
func ExampleDial() {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		log.Fatal(err)
	}
	namespace, err := os.ReadFile(account + "namespace")
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c, err := client.Dial(client.Config{
		Endpoints: []string{"kubernetes.default.svc:443"},
		TLS:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		Token:     client.TokenFile(account + "token"),
		UserAgent: "example/1",
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	pods, _, err := client.For[*corev1.Pod](c).List(context.Background(), client.ListOptions{Namespace: string(namespace)})
	if err != nil {
		log.Print(err)
		return
	}
	for _, pod := range pods {
		fmt.Println(pod.Name, pod.Status.Phase)
	}
}

// Objects are created, read, updated and deleted in their Go types.
func ExampleFor() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	maps := client.For[*corev1.ConfigMap](c)

	created, err := maps.Create(ctx, configMap("settings", "one"))
	must(err)
	_, err = maps.Create(ctx, configMap("settings", "again"))
	fmt.Println("exists already:", apierrors.IsAlreadyExists(err))

	changed := created.DeepCopy()
	changed.Data["key"] = "two"
	_, err = maps.Update(ctx, changed)
	must(err)
	_, err = maps.Update(ctx, created) // conditional on a resourceVersion that is old by now
	fmt.Println("conflict:", apierrors.IsConflict(err))

	got, err := maps.Get(ctx, "default", "settings")
	must(err)
	fmt.Println(got.Data["key"])
	must(maps.Delete(ctx, "default", "settings", client.UID(got.UID)))
	// Output:
	// exists already: true
	// conflict: true
	// two
}

func ExampleResource_All() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	maps := client.For[*corev1.ConfigMap](c)
	for _, name := range []string{"b", "a", "c"} {
		_, err := maps.Create(ctx, configMap(name, name))
		must(err)
	}
	for cm, err := range maps.All(ctx, client.ListOptions{Namespace: "default", PageSize: 2}) {
		must(err)
		fmt.Println(cm.Name)
	}
	// Output:
	// a
	// b
	// c
}

func ExampleResource_Patch() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	maps := client.For[*corev1.ConfigMap](c)
	_, err := maps.Create(ctx, configMap("settings", "one"))
	must(err)
	got, err := maps.Patch(ctx, "default", "settings", types.MergePatchType, []byte(`{"data":{"other":"two"}}`))
	must(err)
	fmt.Println(got.Data["key"], got.Data["other"])
	// Output: one two
}

// Server-side apply creates the object or changes the fields that are set.
func ExampleResource_Apply() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	maps := client.For[*corev1.ConfigMap](c)
	for _, value := range []string{"one", "two"} {
		got, err := maps.Apply(ctx, configMap("settings", value), "example")
		must(err)
		fmt.Println(got.Data["key"])
	}
	// Output:
	// one
	// two
}

// A watch starts with the present state and continues with every change.
func ExampleResource_Watch() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	maps := client.For[*corev1.ConfigMap](c)
	_, err := maps.Create(ctx, configMap("settings", "one"))
	must(err)
	for ev, err := range maps.Watch(ctx, client.WatchOptions{Namespace: "default", SendInitialEvents: true}) {
		must(err)
		switch {
		case ev.InitialEnd:
			fmt.Println("the initial state is complete")
			must(maps.Delete(ctx, "default", "settings"))
		default:
			fmt.Println(ev.Type, ev.Object.Name)
		}
		if ev.Type == client.Deleted {
			break // ends the watch
		}
	}
	// Output:
	// Added settings
	// the initial state is complete
	// Deleted settings
}

// A batch reports a result for each write.
func ExampleClient_Commit() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	results, err := c.Commit(ctx,
		client.CreateWrite(configMap("a", "one")),
		client.DeleteWrite[*corev1.ConfigMap]("default", "missing"),
		client.CreateWrite(configMap("b", "two")),
	)
	must(err)
	for _, r := range results {
		fmt.Println(r.Err == nil, apierrors.IsNotFound(r.Err))
	}
	// Output:
	// true false
	// false true
	// true false
}

// A cache answers from memory, and finds objects by what an index function returns.
func ExampleCache() {
	ctx, cancel := context.WithCancel(context.Background())
	c, stop := start()
	defer stop()
	maps := client.For[*corev1.ConfigMap](c)
	_, err := maps.Create(ctx, configMap("a", "one"))
	must(err)

	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{
		Namespace: "default",
		Indexes: map[string]func(*corev1.ConfigMap) []string{
			"value": func(cm *corev1.ConfigMap) []string { return []string{cm.Data["key"]} },
		},
	})
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	<-cache.Synced()

	_, err = maps.Create(ctx, configMap("b", "one"))
	must(err)
	must(cache.CatchUp(ctx)) // the cache shows the write above
	var names []string
	for _, cm := range cache.ByIndex("value", "one") {
		names = append(names, cm.Name)
	}
	slices.Sort(names)
	fmt.Println(names)

	cancel()
	must(<-done)
	// Output: [a b]
}

// The writes of a leader are refused once another has begun its epoch.
func ExampleWithFence() {
	ctx := context.Background()
	c, stop := start()
	defer stop()
	leases := client.For[*coordinationv1.Lease](c)
	holder, transitions := "first", int32(0)
	lease, err := leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "leader"},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseTransitions: &transitions},
	})
	must(err)
	token, err := client.TakeFence(ctx, c, lease)
	must(err)
	first := client.WithFence(ctx, &client.Fence{Token: token})
	_, err = client.For[*corev1.ConfigMap](c).Create(first, configMap("a", "one"))
	must(err)

	// Another process acquires the Lease, and begins its epoch.
	next := lease.DeepCopy()
	other, again := "second", transitions+1
	next.Spec.HolderIdentity, next.Spec.LeaseTransitions = &other, &again
	next, err = leases.Update(ctx, next)
	must(err)
	_, err = client.TakeFence(ctx, c, next)
	must(err)

	_, err = client.For[*corev1.ConfigMap](c).Create(first, configMap("b", "one"))
	fmt.Println("fenced:", client.IsFenced(err))
	// Output: fenced: true
}
