package tracestore

import (
	"strings"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
)

func TestExportsOfAUserAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	s := New(Config{Now: func() time.Time { return now }})
	c := collector{Service: NewService(s, written{}, allow{"ann": "post /debug/traces", "bob": "post /debug/traces"}, nil)}
	large := of("x", step(1, 1, 0, 0, str("text", strings.Repeat("x", quotaBytes))))
	export := func(user string) (rejected int64) {
		t.Helper()
		res, err := c.Export(as(user), &collectorpb.ExportTraceServiceRequest{ResourceSpans: large})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetPartialSuccess().GetRejectedSpans()
	}
	taken := 0
	for export("ann") == 0 {
		if taken++; taken > quotaSeconds {
			t.Fatal("the exports of a user are not bounded")
		}
	}
	if taken == 0 || export("bob") != 0 {
		t.Errorf("ann exported %d times; bob's export was refused", taken)
	}
	now = now.Add(2 * time.Second)
	if export("ann") != 0 {
		t.Error("an export was refused two seconds later")
	}
	var q quota
	if q.take("ann", quotaSpans*quotaSeconds+1, 0, now) {
		t.Error("the number of spans is not bounded")
	}
	for i := range 3 * quotaUsers {
		q.take(string(rune('a'+i%26))+time.Duration(i).String(), 1, 1, now)
	}
	if len(q.users) > quotaUsers {
		t.Errorf("the quotas of %d users are remembered", len(q.users))
	}
}

func TestForwardIsBoundedByBytes(t *testing.T) {
	forward, err := NewForward("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer forward.conn.Close()
	large := of("x", step(1, 1, 0, 0, str("text", strings.Repeat("x", forwardBytes/4))))
	for range 10 { // Run has not been called
		forward.Send(large)
	}
	if n := forward.Dropped(); n != 7 {
		t.Errorf("dropped %d of 10 exports of a quarter of the bound, want 7", n)
	}
	if n := forward.bytes.Load(); n > forwardBytes {
		t.Errorf("%d bytes are queued", n)
	}
}
