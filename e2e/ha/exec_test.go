package ha_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExecThroughAnyApiserver cuts a node off from one apiserver: what is asked of
// that one reaches the node by way of the others.
func TestExecThroughAnyApiserver(t *testing.T) {
	c := start(t)
	c.keel("up", "--nodes", "1")
	images := os.Getenv("KEELSON_IMAGES")
	if images == "" {
		images = "../../.cache/images"
	}
	c.keel("image", "load", filepath.Join(images, "busybox.tar"))
	if out, err := c.try("kubectl", "run", "box", "--image=keelson.dev/demo/busybox:1",
		`--overrides={"spec":{"nodeName":"node-0"}}`, "--command", "--", "sleep", "3600"); err != nil {
		t.Fatal(out)
	}
	if out, err := c.try("kubectl", "wait", "pod/box", "--for=condition=Ready", "--timeout=60s"); err != nil {
		t.Fatal(out)
	}
	list, err := c.apiservers()
	if err != nil {
		t.Fatal(err)
	}
	say := func(p process) (string, error) {
		return c.try("kubectl", "--server", "https://"+strings.TrimPrefix(p.HTTPS, "https://"), "exec", "box", "--", "echo", "hello")
	}
	for _, p := range list {
		if out, err := say(p); err != nil || strings.TrimSpace(out) != "hello" {
			t.Fatalf("through %s: %v %s", p.Name, err, out)
		}
	}
	lost := list[1]
	host, _, _ := strings.Cut(strings.TrimPrefix(lost.HTTPS, "https://"), ":")
	in := func(args ...string) {
		t.Helper()
		args = append([]string{"netns", "exec", "keelson-" + c.id() + "-node-0"}, args...)
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	in("ip", "route", "add", "unreachable", host+"/32")
	in("ss", "--kill", "dst", host)
	began := time.Now()
	deadline := began.Add(time.Minute)
	for {
		out, err := say(lost)
		if err == nil && strings.TrimSpace(out) == "hello" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("through %s, which the node does not reach: %v %s", lost.Name, err, out)
		}
	}
	t.Logf("%s reached the node through another %s after the cut", lost.Name, time.Since(began).Round(10*time.Millisecond))
	if err := until(time.Minute, func() (bool, error) {
		err := exec.Command("grep", "-q", "node disconnected", filepath.Join(c.home, "log", lost.Name+".log")).Run()
		return err == nil, err
	}); err != nil {
		t.Errorf("the node was still connected to %s: %v", lost.Name, err)
	}
}

// id is the cluster's, which names its namespaces.
func (c *controlPlane) id() string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.home, "cluster.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	var out struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(data, &out); err != nil || out.ID == "" {
		c.t.Fatalf("cluster.json: %v", err)
	}
	return out.ID
}
