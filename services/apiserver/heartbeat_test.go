package main

import "testing"

func TestHeartbeatSeconds(t *testing.T) {
	for nodes, want := range map[int]int32{0: 2, 3: 2, 1000: 2, 1001: 3, 2500: 5, 5000: 10, 5001: 10, 100_000: 10} {
		if got := heartbeatSeconds(nodes); got != want {
			t.Errorf("%d nodes: %d s, want %d", nodes, got, want)
		}
	}
}
