package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/ktimeout"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// runServer serves as derper does, with a self-signed certificate of its own, until it is killed. It prints the region
// for a DERP map, in which the certificate is pinned.
func runServer(arguments []string) error {
	flags := newFlags("derpserver")
	host := flags.String("host", "127.0.0.1", "name or address in the certificate")
	listen := flags.String("listen", "127.0.0.1:0", "address for clients")
	stunListen := flags.String("stun-listen", "127.0.0.1:0", "address for STUN")
	regionID := flags.Int("region-id", 900, "number of the region")
	certificateFile := flags.String("certificate-file", "", "file to write the certificate to, in PEM")
	verifyURL := flags.String("verify-url", "", "whom to ask who may connect")
	flags.Parse(arguments)
	log.SetOutput(os.Stderr)

	certificate, err := selfSigned(*host)
	if err != nil {
		return err
	}
	if *certificateFile != "" {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
		if err := os.WriteFile(*certificateFile, text, 0o644); err != nil {
			return err
		}
	}
	server := derpserver.New(key.NewNode(), logger.Discard)
	server.SetTCPWriteTimeout(2 * time.Second)
	server.SetVerifyClientURL(*verifyURL)
	config := &tls.Config{
		// What derper's own provider does: the certificate is looked up for each client.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil },
		NextProtos:     []string{"http/1.1"},
		MinVersion:     tls.VersionTLS12,
	}
	server.ModifyTLSConfigToAddMetaCert(config)

	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(server))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	web := &http.Server{
		Handler:      mux,
		TLSConfig:    config,
		ErrorLog:     log.New(io.Discard, "", 0),
		ReadTimeout:  30 * time.Second,
		WriteTimeout: 30 * time.Second,
	}
	sockets := net.ListenConfig{Control: ktimeout.UserTimeout(15 * time.Second), KeepAlive: 10 * time.Minute}
	sockets.SetMultipathTCP(false)
	listener, err := sockets.Listen(context.Background(), "tcp", *listen)
	if err != nil {
		return err
	}
	stun := stunserver.New(context.Background())
	if err := stun.Listen(*stunListen); err != nil {
		return err
	}
	go stun.Serve()

	hash := sha256.Sum256(certificate.Certificate[0])
	node := &tailcfg.DERPNode{
		Name:     fmt.Sprintf("%da", *regionID),
		RegionID: *regionID,
		HostName: *host,
		CertName: "sha256-raw:" + hex.EncodeToString(hash[:]),
		DERPPort: listener.Addr().(*net.TCPAddr).Port,
		STUNPort: stun.LocalAddr().(*net.UDPAddr).Port,
	}
	if address, err := netip.ParseAddr(*host); err == nil && address.Is4() {
		node.IPv4 = *host
	} else if err == nil {
		node.IPv6 = *host
	}
	region := &tailcfg.DERPRegion{
		RegionID: *regionID, RegionCode: "mesh", RegionName: "mesh", Nodes: []*tailcfg.DERPNode{node},
	}
	observe("ready", "derp", listener.Addr().String(), "stun", stun.LocalAddr().String(), "region", region,
		"key", server.PublicKey())
	return web.ServeTLS(listener, "", "")
}

// selfSigned makes a certificate as derper does for an address: P-256, one name, a year.
func selfSigned(host string) (*tls.Certificate, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: host},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if address := net.ParseIP(host); address != nil {
		template.IPAddresses = []net.IP{address}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
}
