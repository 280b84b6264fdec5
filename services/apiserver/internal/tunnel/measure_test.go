package tunnel_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/tunnel/tunneltest"
)

func TestMeasure(t *testing.T) { each(t, tunnel.Config{}, testMeasure) }

func testMeasure(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
	want := &nodev1.Usage{Node: &nodev1.Measurement{CpuNanoCores: 7}, Pods: []*nodev1.PodUsage{{Name: "p"}}}
	raw, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	answers := map[int32]func(tunneltest.Session){
		1: func(session tunneltest.Session) { // in pieces
			_ = session.Say(nodev1.Channel_CHANNEL_STDOUT, string(raw[:3]))
			_ = session.Say(nodev1.Channel_CHANNEL_STDOUT, string(raw[3:]))
			_ = session.Exit(0, nil)
		},
		2: func(session tunneltest.Session) {
			st := apierrors.NewServiceUnavailable("the runtime is down").Status()
			_ = session.Exit(0, &st)
		},
		3: func(session tunneltest.Session) {
			_ = session.Say(nodev1.Channel_CHANNEL_STDOUT, "\xff\xff")
			_ = session.Exit(0, nil)
		},
		4: func(session tunneltest.Session) { // without end
			for session.Say(nodev1.Channel_CHANNEL_STDOUT, strings.Repeat("x", tunnel.MaxData)) == nil {
				continue
			}
		},
	}
	tunneltest.Connect(t, c, "n1", nil, func(open *nodev1.Open, session tunneltest.Session) {
		answers[open.GetMeasure().GetMaxAgeSeconds()](session)
	})
	connected(t, holder, "n1")
	got, err := s.Measure(t.Context(), "n1", time.Second)
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for age, text := range map[time.Duration]string{2: "the runtime is down", 3: "usage", 4: "more than 4194304 bytes"} {
		if _, err := s.Measure(t.Context(), "n1", age*time.Second); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("answer %d: %v", age, err)
		}
	}
	if _, err := s.Measure(t.Context(), "n2", time.Second); err == nil {
		t.Error("a node that is not connected was measured")
	}
}
