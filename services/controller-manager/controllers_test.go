package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/event"
)

// selecting returns the catalogue with a value of --controllers.
func selecting(t *testing.T, value string) *catalogue {
	t.Helper()
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	c := newCatalogue(fs)
	if err := fs.Parse([]string{"--controllers", value}); err != nil {
		t.Fatal(err)
	}
	c.ca = func() []byte { return []byte("pem") }
	return c
}

func TestControllersFlag(t *testing.T) {
	all := selecting(t, "*").names()
	but := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(names, s) })
	}
	for value, want := range map[string][]string{
		"*":                                      all,
		"job-controller,cronjob-controller":      {"cronjob-controller", "job-controller"},
		"*,-job-controller":                      but("job-controller"),
		"-job-controller,*,-cronjob-controller":  but("job-controller", "cronjob-controller"),
		"job-controller,-job-controller":         {"job-controller"}, // the first one decides
		"-job-controller,job-controller,*":       but("job-controller"),
		"disruption-controller,-ttl-after-finis": nil,
		"job":                                    nil, // the name of a folder
		"-job-controller":                        nil, // selects none
		"":                                       nil,
	} {
		c := selecting(t, value)
		err := c.check()
		if (err != nil) != (want == nil) {
			t.Errorf("%q: error %v", value, err)
		}
		if want == nil {
			continue
		}
		if got := slices.DeleteFunc(c.names(), func(name string) bool { return !c.enabled(name) }); !slices.Equal(got, want) {
			t.Errorf("%q selects %v, want %v", value, got, want)
		}
	}
	if err := selecting(t, "*,-jobs").check(); err == nil || !strings.Contains(err.Error(), `"jobs"`) || !strings.Contains(err.Error(), "job-controller, ") {
		t.Errorf("the error of an unknown name does not list the known ones: %v", err)
	}
}

// cached returns the kinds that a selection of controllers caches.
func cached(t *testing.T, value string) []string {
	t.Helper()
	_, c := clienttest.StartServer(t)
	s := cluster.New(c, event.NewRecorder(c, name, "test"), nil)
	selecting(t, value).build(s)
	var kinds []string
	for _, cache := range s.Seal() {
		kinds = append(kinds, cache.Kind().Resource)
	}
	slices.Sort(kinds)
	return kinds
}

// A controller that is switched off takes no memory.
func TestOnlyWhatIsReadIsCached(t *testing.T) {
	for value, want := range map[string][]string{
		"serviceaccount-controller":                   {"namespaces", "serviceaccounts"},
		"node-ipam-controller":                        {"nodes"},
		"job-controller":                              {"jobs", "pods"},
		"deployment-controller,replicaset-controller": {"deployments", "pods", "replicasets"},
	} {
		if got := cached(t, value); !slices.Equal(got, want) {
			t.Errorf("%s caches %v, want %v", value, got, want)
		}
	}
}

// With all controllers, the metadata that the garbage collector reads is cached for those
// kinds alone that no other controller caches.
func TestNoKindIsCachedTwice(t *testing.T) {
	var twice []string
	kinds := cached(t, "*")
	for i, k := range kinds[1:] {
		if k == kinds[i] {
			twice = append(twice, k)
		}
	}
	// Parts of these have caches of their own.
	if want := []string{"configmaps", "leases", "secrets", "secrets"}; !slices.Equal(twice, want) {
		t.Errorf("cached more than once: %v, want %v", twice, want)
	}
}

// A term that asks for a cache which no earlier build asked for is a mistake, not a
// controller that waits forever.
func TestNoCacheIsMadeAfterTheStart(t *testing.T) {
	_, c := clienttest.StartServer(t)
	s := cluster.New(c, nil, nil)
	s.Seal()
	defer func() {
		if recover() == nil {
			t.Error("a cache was made")
		}
	}()
	cluster.Of[*corev1.Pod](s)
}

func TestEveryTermHasTheSameCaches(t *testing.T) {
	_, c := clienttest.StartServer(t)
	s := cluster.New(c, event.NewRecorder(c, name, "test"), nil)
	all := selecting(t, "*")
	all.build(s)
	s.Seal()
	if n := len(all.build(s)); n != len(all.entries) {
		t.Errorf("%d controllers of %d", n, len(all.entries))
	}
}
