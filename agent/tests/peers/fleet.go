package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/control/tsp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// fleet is many nodes that speak to control and to nobody else: each registers with a key, opens its map stream, and
// sends one update with its disco key. Nodes do not come back when their stream ends unless they are told to.
type fleet struct {
	control  string
	server   key.MachinePublic
	keys     []string
	atOnce   int
	peers    int
	patience time.Duration
	process  int
	began    time.Time

	mu      sync.Mutex
	changed chan struct{}
	nodes   []*member
	// Streams that ended although nobody asked for it.
	ended int
}

// member is a node of the fleet. What is not a key or a client is guarded by the fleet's lock.
type member struct {
	number  int
	node    key.NodePrivate
	disco   key.DiscoPublic
	client  *tsp.Client
	session *tsp.MapSession
	id      tailcfg.NodeID
	maps    int
	seen    map[tailcfg.NodeID]key.DiscoPublic
	failure string
	joined  bool
}

// runFleet joins the fleet, reports, and then does what the lines of standard input say:
//
//	change     one node has a new disco key; how long until each of its viewers has it
//	late       one more node joins; how long until each of its viewers sees it
//	reopen     all streams are closed and opened again; how long until each has its first map
//	report     where things stand
//
// Each answers with one line. The end of input ends the fleet.
func runFleet(arguments []string) error {
	flags := newFlags("fleet")
	control := flags.String("control", "", "URL of the coordination server; a literal address on plain http is best")
	authKey := flags.String("key", "", "reusable auth key")
	keysFile := flags.String("keys", "", "file with a reusable key on each line, which the nodes take in turn")
	nodes := flags.Int("nodes", 100, "how many")
	atOnce := flags.Int("at-once", 64, "how many join at the same time")
	peers := flags.Int("peers", -1, "how many peers each sees in the end; all others when negative")
	patience := flags.Duration("patience", 5*time.Minute, "how long everything together may take")
	process := flags.Int("pid", 0, "process of the server, whose CPU time and memory are reported")
	flags.Parse(arguments)

	fleet := &fleet{
		control: *control, keys: []string{*authKey}, atOnce: *atOnce, peers: *peers, patience: *patience,
		process: *process, changed: make(chan struct{}),
	}
	if *keysFile != "" {
		text, err := os.ReadFile(*keysFile)
		if err != nil {
			return err
		}
		fleet.keys = strings.Fields(string(text))
	}
	ctx, cancel := context.WithTimeout(context.Background(), fleet.patience)
	defer cancel()
	var err error
	if fleet.server, err = tsp.DiscoverServerKey(ctx, fleet.control); err != nil {
		return err
	}
	fleet.start(ctx, *nodes)

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		ctx, cancel := context.WithTimeout(context.Background(), fleet.patience)
		var err error
		switch word := strings.TrimSpace(lines.Text()); word {
		case "change":
			err = fleet.change(ctx)
		case "late":
			err = fleet.late(ctx)
		case "reopen":
			fleet.reopen(ctx)
		case "report":
			fleet.report("report")
		default:
			err = fmt.Errorf("not understood: %q", word)
		}
		cancel()
		if err != nil {
			observe("error", "error", err.Error())
		}
	}
	return nil
}

// start joins n nodes and waits until all see all.
func (f *fleet) start(ctx context.Context, n int) {
	f.began = time.Now()
	before := f.usage()
	for number := range n {
		f.nodes = append(f.nodes, f.newMember(number))
	}
	f.each(f.nodes, func(m *member) { f.join(ctx, m) })
	f.report("joined", "seconds", time.Since(f.began).Seconds(), "cpu_s", f.usage().cpu-before.cpu)
	complete := f.wait(ctx, func() bool {
		for _, member := range f.nodes {
			// Whose stream has ended sees nobody any more.
			if member.session != nil && len(member.seen) < f.wanted(n) {
				return false
			}
		}
		return true
	})
	f.report("all-see-all", "complete", complete && f.failed() == 0 && f.lost() == 0, "seconds", time.Since(f.began).Seconds(),
		"cpu_s", f.usage().cpu-before.cpu)
}

// wanted is how many peers each sees among n nodes.
func (f *fleet) wanted(n int) int {
	if f.peers >= 0 {
		return min(f.peers, n-1)
	}
	return n - 1
}

func (f *fleet) newMember(number int) *member {
	return &member{
		number: number,
		node:   key.NewNode(),
		disco:  key.NewDisco().Public(),
		seen:   make(map[tailcfg.NodeID]key.DiscoPublic),
	}
}

// each does it for all, some at once.
func (f *fleet) each(members []*member, do func(*member)) {
	free := make(chan struct{}, f.atOnce)
	var group sync.WaitGroup
	for _, member := range members {
		free <- struct{}{}
		group.Go(func() {
			do(member)
			<-free
		})
	}
	group.Wait()
}

func (f *fleet) join(ctx context.Context, m *member) {
	if err := f.tryJoin(ctx, m); err != nil {
		f.fail(m, err)
	}
}

func (f *fleet) tryJoin(ctx context.Context, m *member) error {
	client, err := tsp.NewClient(tsp.ClientOpts{ServerURL: f.control, MachineKey: key.NewMachine()})
	if err != nil {
		return err
	}
	client.SetControlPublicKey(f.server)
	m.client = client
	register := tsp.RegisterOpts{NodeKey: m.node, Hostinfo: m.hostinfo(), AuthKey: f.keys[m.number%len(f.keys)]}
	response, err := client.Register(ctx, register)
	if err != nil {
		return err
	}
	if !response.MachineAuthorized || response.AuthURL != "" {
		return errors.New("not authorized by the key")
	}
	if err := f.open(ctx, m); err != nil {
		return err
	}
	update := tsp.SendMapUpdateOpts{NodeKey: m.node, DiscoKey: m.disco, Hostinfo: m.hostinfo()}
	if err := client.SendMapUpdate(ctx, update); err != nil {
		return err
	}
	f.update(func() { m.joined = true })
	return nil
}

func (m *member) hostinfo() *tailcfg.Hostinfo {
	return &tailcfg.Hostinfo{
		OS: "linux", Hostname: fmt.Sprintf("fleet-%05d", m.number), IPNVersion: "1.102.4",
		NetInfo: &tailcfg.NetInfo{PreferredDERP: 900},
	}
}

// open opens the map stream and waits for its first map; what follows is read in the background.
func (f *fleet) open(ctx context.Context, m *member) error {
	session, err := m.client.Map(context.Background(), tsp.MapOpts{NodeKey: m.node, Hostinfo: m.hostinfo(), Stream: true})
	if err != nil {
		return err
	}
	first := make(chan error, 1)
	go f.read(m, session, first)
	select {
	case err := <-first:
		return err
	case <-ctx.Done():
		session.Close()
		return errors.New("no map in time")
	}
}

func (f *fleet) read(m *member, session *tsp.MapSession, first chan<- error) {
	f.update(func() { m.session = session })
	var response tailcfg.MapResponse
	for began := false; ; began = true {
		err := session.NextInto(&response)
		if err != nil {
			session.Close()
			f.update(func() {
				if m.session == session {
					m.session = nil
					f.ended++
				}
			})
			if !began {
				first <- err
			}
			return
		}
		f.update(func() { m.note(&response) })
		if !began {
			first <- nil
		}
	}
}

// note takes in one message of the map stream.
func (m *member) note(response *tailcfg.MapResponse) {
	m.maps++
	if response.Node != nil {
		m.id = response.Node.ID
	}
	if response.Peers != nil {
		clear(m.seen)
	}
	for _, peers := range [][]*tailcfg.Node{response.Peers, response.PeersChanged} {
		for _, peer := range peers {
			m.seen[peer.ID] = peer.DiscoKey
		}
	}
	for _, change := range response.PeersChangedPatch {
		if _, known := m.seen[change.NodeID]; known && change.DiscoKey != nil {
			m.seen[change.NodeID] = *change.DiscoKey
		}
	}
	for _, gone := range response.PeersRemoved {
		delete(m.seen, gone)
	}
}

// change gives one node a new disco key.
func (f *fleet) change(ctx context.Context) error {
	f.mu.Lock()
	var subject *member
	for _, member := range f.nodes {
		if member.joined && member.session != nil {
			subject = member
			break
		}
	}
	f.mu.Unlock()
	if subject == nil {
		return errors.New("nobody is here")
	}
	before, began := f.usage(), time.Now()
	subject.disco = key.NewDisco().Public()
	update := tsp.SendMapUpdateOpts{NodeKey: subject.node, DiscoKey: subject.disco, Hostinfo: subject.hostinfo()}
	if err := subject.client.SendMapUpdate(ctx, update); err != nil {
		return err
	}
	f.spread(ctx, "change", subject, before, began)
	return nil
}

// late adds one more node.
func (f *fleet) late(ctx context.Context) error {
	f.mu.Lock()
	newcomer := f.newMember(len(f.nodes))
	f.nodes = append(f.nodes, newcomer)
	f.mu.Unlock()
	before, began := f.usage(), time.Now()
	if err := f.tryJoin(ctx, newcomer); err != nil {
		f.fail(newcomer, err)
		return err
	}
	f.spread(ctx, "late", newcomer, before, began)
	return nil
}

// spread waits until everybody who is to see the subject has its disco key, and reports how long that took.
func (f *fleet) spread(ctx context.Context, event string, subject *member, before usage, began time.Time) {
	var times []time.Duration
	done := make(map[int]bool)
	complete := f.wait(ctx, func() bool {
		open := 0
		for _, member := range f.nodes {
			if member == subject || member.session == nil {
				continue
			}
			open++
			if member.seen[subject.id] == subject.disco && !done[member.number] {
				done[member.number] = true
				times = append(times, time.Since(began))
			}
		}
		return len(times) >= min(open, f.wanted(len(f.nodes)))
	})
	middle, last := 0.0, 0.0
	if len(times) > 0 {
		// In the order in which they came.
		middle, last = milliseconds(times[len(times)/2]), milliseconds(times[len(times)-1])
	}
	f.report(event, "complete", complete, "viewers", len(times), "p50_ms", middle, "last_ms", last,
		"cpu_ms", (f.usage().cpu-before.cpu)*1e3)
}

// reopen closes every stream and opens it again.
func (f *fleet) reopen(ctx context.Context) {
	f.mu.Lock()
	members := []*member{}
	for _, member := range f.nodes {
		if !member.joined {
			continue
		}
		members = append(members, member)
		if session := member.session; session != nil {
			member.session = nil
			go session.Close()
		}
	}
	f.mu.Unlock()
	before, began := f.usage(), time.Now()
	f.each(members, func(m *member) {
		for {
			err := f.open(ctx, m)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				f.fail(m, err)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	f.report("reopened", "seconds", time.Since(began).Seconds(), "cpu_s", f.usage().cpu-before.cpu)
}

// report prints an event with where things stand.
func (f *fleet) report(event string, fields ...any) {
	now := f.usage()
	f.mu.Lock()
	joined, streams, failures := 0, 0, []string{}
	for _, member := range f.nodes {
		if member.joined {
			joined++
		}
		if member.session != nil {
			streams++
		}
		if member.failure != "" && len(failures) < 5 {
			failures = append(failures, fmt.Sprintf("%d: %s", member.number, member.failure))
		}
	}
	f.mu.Unlock()
	fields = append(fields, "joined", joined, "failed", f.failed(), "streams", streams, "ended", f.lost(),
		"failures", failures)
	if f.process != 0 {
		fields = append(fields, "rss_kib", now.rss)
		if streams > 0 {
			fields = append(fields, "rss_kib_per_stream", now.rss/streams)
		}
	}
	observe(event, fields...)
}

func (f *fleet) failed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	failed := 0
	for _, member := range f.nodes {
		if member.failure != "" {
			failed++
		}
	}
	return failed
}

// lost is how many streams ended although nobody asked for it.
func (f *fleet) lost() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

func (f *fleet) fail(m *member, err error) {
	f.update(func() { m.failure = err.Error() })
}

// update changes something and tells those who wait.
func (f *fleet) update(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// wait looks again after each change until it holds; false when time is up.
func (f *fleet) wait(ctx context.Context, holds func() bool) bool {
	for {
		f.mu.Lock()
		done, changed := holds(), f.changed
		f.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// usage is what the server has used: seconds of CPU, and KiB of memory now.
type usage struct {
	cpu float64
	rss int
}

func (f *fleet) usage() usage {
	var used usage
	if f.process == 0 {
		return used
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.process))
	if err != nil {
		return used
	}
	// Behind the name, which may contain anything.
	words := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(words) < 22 {
		return used
	}
	number := func(place int) int {
		value, _ := strconv.Atoi(words[place])
		return value
	}
	const ticks, page = 100, 4
	used.cpu = float64(number(11)+number(12)) / ticks
	used.rss = number(21) * page
	return used
}

func milliseconds(duration time.Duration) float64 {
	return float64(duration.Microseconds()) / 1e3
}
