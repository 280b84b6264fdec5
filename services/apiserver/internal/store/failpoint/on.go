//go:build failpoints

package failpoint

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"
)

// every is how long the content of the file is cached.
const every = 20 * time.Millisecond

type point struct {
	action      Action
	probability float64
}

var (
	mu     sync.Mutex
	read   time.Time
	text   string
	points map[string][]point
)

// At returns the action at a failpoint, chosen at random.
func At(name string) Action {
	path := os.Getenv(Variable)
	if path == "" {
		return None
	}
	mu.Lock()
	defer mu.Unlock()
	if time.Since(read) > every {
		read = time.Now()
		data, err := os.ReadFile(path)
		if err == nil && string(data) != text {
			text = string(data)
			points = parse(text)
			slog.WarnContext(context.Background(), "failpoints are active", "points", text)
		}
	}
	for _, p := range points[name] {
		if rand.Float64() < p.probability {
			return p.action
		}
	}
	return None
}

func parse(text string) map[string][]point {
	actions := map[string]Action{"refuse": Refuse, "lose-request": LoseRequest, "lose-answer": LoseAnswer}
	out := map[string][]point{}
	for line := range strings.Lines(text) {
		var name, action string
		var p point
		if _, err := fmt.Sscan(line, &name, &action, &p.probability); err != nil || actions[action] == None {
			slog.ErrorContext(context.Background(), "ignoring an invalid line of the failpoints file", "line", line)
			continue
		}
		p.action = actions[action]
		out[name] = append(out[name], p)
	}
	return out
}
