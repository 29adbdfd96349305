package org.apache.amoro.optimizer.common;

import java.io.IOException;
import java.io.Serializable;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;

/**
 * An optimizer as AMS sees one, for tests: it takes the options of Amoro's optimizers, registers,
 * and sends heartbeats. It never asks for a task.
 */
public final class Optimizer implements Serializable {
  private static final long serialVersionUID = 1L;
  private static final Set<String> FLAGS = Set.of("-eds", "-ce", "-msm");
  private static final Set<String> VALUES =
      Set.of("-a", "-p", "-g", "-hb", "-st", "-dsp", "-msz", "-cmts", "-cmes", "-ct", "-id");
  private static final int MEMORY_MB = 512;
  private static final long RETRY_MS = 1_000;
  private static final long DRAIN_MS = 2_000; // Amoro's own takes as long as its tasks do
  private static final int FORBIDDEN = 1004;
  private static final int UNKNOWN_TOKEN = 2006;

  private final HashMap<String, String> options = new HashMap<>();
  private final int threads;
  private final long heartBeatMs;
  private transient volatile boolean registered;

  /**
   * Reads the command line.
   *
   * @throws IllegalArgumentException for what Amoro's optimizers do not take either
   */
  public Optimizer(String[] arguments) {
    for (int at = 0; at < arguments.length; at++) {
      String option = arguments[at];
      boolean valued = VALUES.contains(option) && at + 1 < arguments.length;
      if (!valued && !FLAGS.contains(option)) {
        throw new IllegalArgumentException("\"" + option + "\" is not a valid option");
      }
      options.put(option, valued ? arguments[++at] : "true");
    }
    if (!options.keySet().containsAll(Set.of("-a", "-p", "-g"))) {
      throw new IllegalArgumentException("Options \"-a\", \"-p\" and \"-g\" are required");
    }
    new ManagerClient(options.get("-a")); // complains of a bad address here, not in a task
    threads = Integer.parseInt(options.get("-p"));
    heartBeatMs = Long.parseLong(options.getOrDefault("-hb", "10000"));
  }

  /** The resource that it stands for, or null where it was started by hand. */
  public String resourceId() {
    return options.get("-id");
  }

  /**
   * Registers and sends heartbeats until the thread is interrupted.
   *
   * @param jobId what its container calls it: a process id, a job id, an application id
   */
  public void run(String jobId) throws InterruptedException {
    ManagerClient manager = new ManagerClient(options.get("-a"));
    String token = null;
    while (true) {
      long pause = heartBeatMs;
      try {
        if (token == null) {
          token = register(manager, jobId);
        } else {
          manager.touch(token);
        }
      } catch (ManagerClient.Refused refused) {
        System.err.println("AMS refused: " + refused.getMessage());
        if (token == null && refused.code == FORBIDDEN) {
          System.exit(1); // Amoro's own does so, even inside a task manager
        }
        boolean forgotten = refused.code == UNKNOWN_TOKEN && token != null;
        token = forgotten ? null : token;
        pause = forgotten ? 0 : RETRY_MS;
      } catch (IOException unreachable) {
        System.err.println("AMS does not answer: " + unreachable);
        pause = RETRY_MS;
      }
      Thread.sleep(pause);
    }
  }

  /**
   * Drains, when the process is to end: what is under way goes on for a while. So an optimizer that
   * is ended while it boots completes its first registration; later it never registers again.
   */
  public void drain() {
    try {
      for (long waited = 0; !registered && waited < DRAIN_MS; waited += RETRY_MS / 10) {
        Thread.sleep(RETRY_MS / 10);
      }
      Thread.sleep(DRAIN_MS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  private String register(ManagerClient manager, String jobId)
      throws IOException, ManagerClient.Refused {
    Map<String, String> properties = new HashMap<>();
    properties.put("heart-beat-interval", Long.toString(heartBeatMs));
    properties.put("job-id", jobId);
    if (resourceId() != null) {
      properties.put("resource-id", resourceId());
    }
    String token =
        manager.authenticate(resourceId(), threads, MEMORY_MB, options.get("-g"), properties);
    registered = true;
    System.out.println("Registered " + resourceId() + " as " + jobId);
    return token;
  }
}
